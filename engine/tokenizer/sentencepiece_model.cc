// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/tokenizer/sentencepiece_model.h"

#include <cmath>
#include <unordered_set>
#include <utility>

#include "base/utf8.h"
#include "engine/tokenizer/token_model.h"
#include "engine/tokenizer/wire_reader.h"

namespace nibble::engine {
namespace {

// Field numbers of sentencepiece_model.proto.
namespace model_field {
constexpr int kPieces = 1;
constexpr int kTrainerSpec = 2;
constexpr int kNormalizerSpec = 3;
constexpr int kDenormalizerSpec = 5;
}  // namespace model_field
namespace piece_field {
constexpr int kPiece = 1;
constexpr int kScore = 2;
constexpr int kType = 3;
}  // namespace piece_field
namespace trainer_field {
constexpr int kModelType = 3;
constexpr int kWhitespaceAsSuffix = 24;
constexpr int kByteFallback = 35;
constexpr int kBosId = 41;
constexpr int kEosId = 42;
}  // namespace trainer_field
namespace normalizer_field {
constexpr int kCharsmap = 2;
constexpr int kAddDummyPrefix = 3;
constexpr int kRemoveExtraWhitespaces = 4;
constexpr int kEscapeWhitespaces = 5;
}  // namespace normalizer_field

// Calls visit(reader) for every field of `message`.
template <typename Visit>
absl::Status VisitFields(std::string_view message, const Visit& visit) {
  WireReader reader(message);
  while (true) {
    NIBBLE_ASSIGN_OR_RETURN(const bool more, reader.Next());
    if (!more) return absl::OkStatus();
    NIBBLE_RETURN_IF_ERROR(visit(reader));
  }
}

absl::Status ParsePiece(std::string_view message, SentencePieceModel* model) {
  SentencePiece piece;
  NIBBLE_RETURN_IF_ERROR(VisitFields(message, [&](const WireReader& reader) -> absl::Status {
    if (reader.field() == piece_field::kPiece) {
      NIBBLE_ASSIGN_OR_RETURN(const std::string_view text, reader.Bytes());
      piece.piece = std::string(text);
    } else if (reader.field() == piece_field::kScore) {
      NIBBLE_ASSIGN_OR_RETURN(piece.score, reader.Float());
    } else if (reader.field() == piece_field::kType) {
      NIBBLE_ASSIGN_OR_RETURN(const int64_t type, reader.Int());
      if (type < 1 || type > 6) return InvalidArgument("type {} is outside 1..6", type);
      piece.type = static_cast<PieceType>(type);
    }
    return absl::OkStatus();
  }));
  if (piece.piece.empty()) return InvalidArgument("the piece is empty");
  if (!IsValidUtf8(piece.piece)) return InvalidArgument("the piece is not valid UTF-8");
  if (!std::isfinite(piece.score)) return InvalidArgument("score {}", piece.score);
  if (piece.type == PieceType::kByte && ByteOfToken(piece.piece) < 0) {
    return InvalidArgument("byte piece \"{}\", want \"<0x00>\"..\"<0xFF>\"", piece.piece);
  }
  model->pieces.push_back(std::move(piece));
  return absl::OkStatus();
}

absl::Status ParseTrainerSpec(std::string_view message, SentencePieceModel* model) {
  return VisitFields(message, [&](const WireReader& reader) -> absl::Status {
    if (reader.field() == trainer_field::kModelType) {
      NIBBLE_ASSIGN_OR_RETURN(const int64_t type, reader.Int());
      if (type != 1 && type != 2) {
        return InvalidArgument("model type {} is not supported (1, unigram, and 2, BPE, are)",
                               type);
      }
      model->algorithm =
          type == 1 ? SentencePieceModel::Algorithm::kUnigram : SentencePieceModel::Algorithm::kBpe;
    } else if (reader.field() == trainer_field::kWhitespaceAsSuffix) {
      NIBBLE_ASSIGN_OR_RETURN(model->whitespace_as_suffix, reader.Bool());
    } else if (reader.field() == trainer_field::kByteFallback) {
      NIBBLE_ASSIGN_OR_RETURN(model->byte_fallback, reader.Bool());
    } else if (reader.field() == trainer_field::kBosId || reader.field() == trainer_field::kEosId) {
      NIBBLE_ASSIGN_OR_RETURN(const int64_t id, reader.Int());
      if (id < -1 || id > kMaxTokenId) return InvalidArgument("special id {}", id);
      (reader.field() == trainer_field::kBosId ? model->bos_id : model->eos_id) =
          static_cast<int32_t>(id);
    }
    return absl::OkStatus();
  });
}

absl::Status ParseNormalizerSpec(std::string_view message, SentencePieceModel* model) {
  return VisitFields(message, [&](const WireReader& reader) -> absl::Status {
    if (reader.field() == normalizer_field::kCharsmap) {
      NIBBLE_ASSIGN_OR_RETURN(const std::string_view map, reader.Bytes());
      model->charsmap = std::string(map);
    } else if (reader.field() == normalizer_field::kAddDummyPrefix) {
      NIBBLE_ASSIGN_OR_RETURN(model->add_dummy_prefix, reader.Bool());
    } else if (reader.field() == normalizer_field::kRemoveExtraWhitespaces) {
      NIBBLE_ASSIGN_OR_RETURN(model->remove_extra_whitespaces, reader.Bool());
    } else if (reader.field() == normalizer_field::kEscapeWhitespaces) {
      NIBBLE_ASSIGN_OR_RETURN(model->escape_whitespaces, reader.Bool());
    }
    return absl::OkStatus();
  });
}

// A text changed back after decoding is not decoded token by token.
absl::Status RefuseDenormalizer(std::string_view message) {
  return VisitFields(message, [&](const WireReader& reader) -> absl::Status {
    if (reader.field() != normalizer_field::kCharsmap) return absl::OkStatus();
    NIBBLE_ASSIGN_OR_RETURN(const std::string_view map, reader.Bytes());
    if (!map.empty()) return InvalidArgument("a denormalizer is not supported");
    return absl::OkStatus();
  });
}

// What holds across pieces: each is there once, one is the unknown piece, byte fallback has all
// bytes.
absl::Status CheckPieces(SentencePieceModel* model) {
  std::unordered_set<std::string_view> seen;
  int num_unknown = 0;
  int num_bytes = 0;
  for (size_t id = 0; id < model->pieces.size(); ++id) {
    const SentencePiece& piece = model->pieces[id];
    if (!seen.insert(piece.piece).second) {
      return InvalidArgument("pieces[{}]: \"{}\" is there twice", id, piece.piece);
    }
    if (piece.type == PieceType::kByte) ++num_bytes;
    if (piece.type == PieceType::kUnknown) {
      ++num_unknown;
      model->unk_id = static_cast<int32_t>(id);
    }
  }
  if (num_unknown != 1) return InvalidArgument("{} unknown pieces, want 1", num_unknown);
  if (model->byte_fallback && num_bytes != 256) {
    return InvalidArgument("byte fallback with {} byte pieces, want 256", num_bytes);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SentencePieceModel> SentencePieceModel::Parse(std::string_view file) {
  SentencePieceModel model;
  model.bos_id = 1;  // the proto's defaults
  model.eos_id = 2;
  NIBBLE_RETURN_IF_ERROR(VisitFields(file, [&](const WireReader& reader) -> absl::Status {
    const int field = reader.field();
    if (field != model_field::kPieces && field != model_field::kTrainerSpec &&
        field != model_field::kNormalizerSpec && field != model_field::kDenormalizerSpec) {
      return absl::OkStatus();
    }
    NIBBLE_ASSIGN_OR_RETURN(const std::string_view message, reader.Bytes());
    if (field == model_field::kTrainerSpec) {
      return Annotate(ParseTrainerSpec(message, &model), "trainer_spec");
    }
    if (field == model_field::kNormalizerSpec) {
      return Annotate(ParseNormalizerSpec(message, &model), "normalizer_spec");
    }
    if (field == model_field::kDenormalizerSpec) {
      return Annotate(RefuseDenormalizer(message), "denormalizer_spec");
    }
    const size_t id = model.pieces.size();
    if (id > static_cast<size_t>(kMaxTokenId)) {
      return InvalidArgument("more than {} pieces", kMaxTokenId);
    }
    const absl::Status status = ParsePiece(message, &model);
    return status.ok() ? status : Annotate(status, fmt::format("pieces[{}]", id));
  }));
  NIBBLE_RETURN_IF_ERROR(CheckPieces(&model));
  const auto count = static_cast<int32_t>(model.pieces.size());
  for (int32_t* id : {&model.bos_id, &model.eos_id}) {
    // Models trained without such a token keep the default number, which then is another piece's.
    if (*id >= count ||
        (*id >= 0 && model.pieces[static_cast<size_t>(*id)].type != PieceType::kControl)) {
      *id = -1;
    }
  }
  return model;
}

}  // namespace nibble::engine
