// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Where a run works until its output is complete:
//
//   OUTPUT.partial/
//     lock               held while a run is at work here
//     run.json           what is being made of what: a later run goes on only with the same
//     calibration.ids    int32, the tokens
//     layers/00003/      a finished layer (layer_store.h); appears by renaming
//     output/            the checkpoint being put together; becomes OUTPUT by renaming
//     replaced/          the old OUTPUT, on file systems that cannot exchange two folders
//
// A run that is killed, at any point, leaves OUTPUT as it was and its finished layers here. (Where
// the old one had to move away first and the run was killed right then, the next run puts it back.)
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "nlohmann/json_fwd.hpp"

#include "base/status.h"

namespace nibble::quantize {

struct WorkFolderOptions {
  // Replaces the output folder when it holds a model (a config.json); any other folder with files
  // in it is left alone and refused.
  bool overwrite = false;
  bool restart = false;  // discards what an earlier run left
};

class WorkFolder {
 public:
  // Makes or takes up "OUTPUT.partial" beside `output` (and missing parents). `run` is an object of
  // plain values by readable names. ALREADY_EXISTS when `output` has files in it,
  // FAILED_PRECONDITION when the folder is of a run with other values (naming each), in use by
  // another run, or none of ours (something is in it, but no run.json).
  static absl::StatusOr<WorkFolder> Open(const std::string& output,
                                         const nlohmann::ordered_json& run,
                                         const WorkFolderOptions& options);

  WorkFolder(WorkFolder&& other) noexcept;
  WorkFolder& operator=(WorkFolder&& other) = delete;
  // Removes the folder when there is nothing in it to go on from.
  ~WorkFolder();

  const std::string& path() const { return path_; }
  std::string calibration_path() const;

  bool HasLayer(int64_t layer_idx) const;
  std::string LayerPath(int64_t layer_idx) const;
  // An empty folder to write a layer to, which FinishLayer makes LayerPath(layer_idx).
  absl::StatusOr<std::string> BeginLayer() const;
  absl::Status FinishLayer(int64_t layer_idx) const;

  // An empty folder for the checkpoint, which Commit makes the output; what was there goes only
  // after the new one is in place, and the work folder with it. ALREADY_EXISTS, and nothing is
  // changed, when files have come to `output` that WorkFolderOptions do not let go.
  absl::StatusOr<std::string> BeginOutput() const;
  absl::Status Commit();

 private:
  WorkFolder() = default;
  absl::Status Lock();
  absl::Status RestoreReplaced() const;
  absl::Status TakeUp(const nlohmann::ordered_json& run, bool restart) const;
  absl::Status PutInPlace(const std::string& made) const;
  absl::Status Discard() const;
  bool HasWork() const;

  std::string output_;
  bool overwrite_ = false;
  std::string path_;  // empty: moved from
  int lock_fd_ = -1;
};

}  // namespace nibble::quantize
