// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Whether AMX's tile registers can be relied on. Some hypervisors offer AMX and lose the content of
// tiles when a thread is switched away: results would be wrong now and then, and nothing would say
// so.
#pragma once

namespace nibble {

// True when a tile kept its content while the thread slept and yielded some dozens of times. Takes
// a few milliseconds. REQUIRES: the CPU has AMX-TILE and the process its tile state.
bool AmxTilesSurviveSwitches();

}  // namespace nibble
