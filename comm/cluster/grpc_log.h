// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the gRPC library itself has to say.
#pragma once

namespace nibble::comm {

// Puts its lines into our log, a few in ten seconds: a stranger who connects with other bytes or
// another TLS causes one each time. For the whole process, once.
void LimitGrpcLog();

}  // namespace nibble::comm
