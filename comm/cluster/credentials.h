// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// TLS of the cluster's connections: mutual, or none.
#pragma once

#include <memory>

#include "grpcpp/security/credentials.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/support/channel_arguments.h"

#include "base/status.h"
#include "comm/cluster/cluster_options.h"

namespace nibble::comm {

// INVALID_ARGUMENT for PEM texts that cannot be read or do not belong together; gRPC would only
// fail later, without saying why.
absl::Status CheckCertificates(const ClusterSecurity& security);

std::shared_ptr<grpc::ServerCredentials> ServerCredentialsOf(const ClusterSecurity& security);
// May set arguments that belong to them.
std::shared_ptr<grpc::ChannelCredentials> ChannelCredentialsOf(const ClusterSecurity& security,
                                                               grpc::ChannelArguments* arguments);

}  // namespace nibble::comm
