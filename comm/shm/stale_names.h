// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Names of shared memory that nobody will remove any more. A segment has a name only while its
// group is being formed; when the whole server ends in that time (killed, all ranks with it), the
// name stays, and no later server looks for it, since group ids are random.
#pragma once

#include <string_view>

namespace nibble::comm {

// Removes the names of segments of this user whose maker is gone, of groups whose id begins so, and
// returns how many they were. Called before ranks are started; groups that are forming meanwhile
// are left alone. Requires, as the segments do, that all processes that share /dev/shm see each
// other's pids.
int RemoveStaleNames(std::string_view group_prefix = "");

}  // namespace nibble::comm
