// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/chat/jinja/parser.h"

#include <algorithm>
#include <array>

namespace nibble::server::jinja {
namespace {

// Tags that reach other templates or need an extension that transformers does not load.
constexpr std::array<std::string_view, 11> kRefusedTags = {
    "include", "import", "from",  "extends", "block",    "autoescape",
    "do",      "trans",  "debug", "print",   "pluralize"};

std::unique_ptr<Stmt> NewStmt(StmtKind kind, int line) {
  auto stmt = std::make_unique<Stmt>();
  stmt->kind = kind;
  stmt->line = line;
  return stmt;
}

}  // namespace

const Token& Parser::Peek(size_t ahead) const {
  return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
}

bool Parser::AtOperator(std::string_view text, size_t ahead) const {
  return Peek(ahead).kind == TokenKind::kOperator && Peek(ahead).text == text;
}

bool Parser::AtName(std::string_view text, size_t ahead) const {
  return Peek(ahead).kind == TokenKind::kName && Peek(ahead).text == text;
}

bool Parser::TakeOperator(std::string_view text) {
  if (!AtOperator(text)) return false;
  Next();
  return true;
}

bool Parser::TakeName(std::string_view text) {
  if (!AtName(text)) return false;
  Next();
  return true;
}

std::string Parser::Describe(const Token& token) const {
  switch (token.kind) {
    case TokenKind::kEnd:
      return "end of template";
    case TokenKind::kBlockEnd:
      return "%}";
    case TokenKind::kVariableEnd:
      return "}}";
    case TokenKind::kBlockBegin:
      return "{%";
    case TokenKind::kVariableBegin:
      return "{{";
    case TokenKind::kText:
      return "text";
    default:
      return "'" + token.text.substr(0, 40) + "'";
  }
}

absl::Status Parser::Unexpected() const {
  return InvalidArgument("line {}: unexpected {}", Peek().line, Describe(Peek()));
}

absl::Status Parser::ExpectOperator(std::string_view text) {
  if (TakeOperator(text)) return absl::OkStatus();
  return InvalidArgument("line {}: expected '{}', got {}", Peek().line, std::string(text),
                         Describe(Peek()));
}

absl::Status Parser::ExpectName(std::string_view text) {
  if (TakeName(text)) return absl::OkStatus();
  return InvalidArgument("line {}: expected '{}', got {}", Peek().line, std::string(text),
                         Describe(Peek()));
}

absl::Status Parser::ExpectBlockEnd() {
  if (Peek().kind != TokenKind::kBlockEnd) {
    return InvalidArgument("line {}: expected %}}, got {}", Peek().line, Describe(Peek()));
  }
  Next();
  return absl::OkStatus();
}

absl::StatusOr<std::string> Parser::TakeIdentifier() {
  if (Peek().kind != TokenKind::kName) {
    return InvalidArgument("line {}: expected a name, got {}", Peek().line, Describe(Peek()));
  }
  return Next().text;
}

absl::Status Parser::TooDeep(int line) const {
  return InvalidArgument("line {}: nested deeper than the limit of {}", line, max_depth_);
}

absl::Status Parser::Enter() {
  return ++depth_ > max_depth_ ? TooDeep(Peek().line) : absl::OkStatus();
}

absl::StatusOr<Template> Parser::Parse() {
  Template parsed;
  NIBBLE_ASSIGN_OR_RETURN(parsed.body, ParseBody({}, "template"));
  return parsed;
}

absl::StatusOr<Stmts> Parser::ParseBody(std::vector<std::string_view> ends,
                                        std::string_view opened) {
  NIBBLE_RETURN_IF_ERROR(Enter());
  Stmts body;
  bool ended = false;
  while (!ended) {
    const Token& token = Peek();
    if (token.kind == TokenKind::kEnd) {
      if (!ends.empty()) {
        return InvalidArgument("line {}: the template ends inside of '{}': no '{}'", token.line,
                               std::string(opened), std::string(ends.back()));
      }
      break;
    }
    if (token.kind == TokenKind::kText) {
      body.push_back(NewStmt(StmtKind::kText, token.line));
      body.back()->text = Next().text;
    } else if (token.kind == TokenKind::kVariableBegin) {
      auto stmt = NewStmt(StmtKind::kOutput, token.line);
      Next();
      NIBBLE_ASSIGN_OR_RETURN(stmt->expr, ParseTuple(true, false));
      if (Peek().kind != TokenKind::kVariableEnd) return Unexpected();
      Next();
      body.push_back(std::move(stmt));
    } else if (token.kind == TokenKind::kBlockBegin) {
      Next();
      NIBBLE_RETURN_IF_ERROR(ParseTag(ends, opened, &body, &ended));
    } else {
      return Unexpected();
    }
  }
  --depth_;
  return body;
}

absl::Status Parser::ParseTag(const std::vector<std::string_view>& ends, std::string_view opened,
                              Stmts* body, bool* ended) {
  const Token& tag = Peek();
  if (tag.kind != TokenKind::kName) return Unexpected();
  if (std::find(ends.begin(), ends.end(), tag.text) != ends.end()) {
    *ended = true;
    return absl::OkStatus();
  }
  if (tag.text.starts_with("end") || tag.text == "else" || tag.text == "elif") {
    return InvalidArgument("line {}: unexpected '{}' inside of '{}'", tag.line, tag.text,
                           std::string(opened));
  }
  NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<Stmt> stmt, ParseStatement());
  body->push_back(std::move(stmt));
  return absl::OkStatus();
}

absl::StatusOr<Stmts> Parser::ParseBodyUntil(std::string_view end, std::string_view opened) {
  NIBBLE_RETURN_IF_ERROR(ExpectBlockEnd());
  NIBBLE_ASSIGN_OR_RETURN(Stmts body, ParseBody({end}, opened));
  Next();
  NIBBLE_RETURN_IF_ERROR(ExpectBlockEnd());
  return body;
}

Parser::StmtResult Parser::ParseStatement() {
  const int line = Peek().line;
  NIBBLE_ASSIGN_OR_RETURN(const std::string tag, TakeIdentifier());
  if (tag == "if") return ParseIf(line);
  if (tag == "for") return ParseFor(line);
  if (tag == "set") return ParseSet(line);
  if (tag == "macro") return ParseMacro(line);
  if (tag == "call") return ParseCallBlock(line);
  if (tag == "filter") return ParseFilterBlock(line);
  if (tag == "with") return ParseWith(line);
  if (tag == "generation") {
    // Marks the assistant's tokens for training; nothing to do here.
    auto stmt = NewStmt(StmtKind::kBlock, line);
    NIBBLE_ASSIGN_OR_RETURN(stmt->body, ParseBodyUntil("endgeneration", tag));
    return stmt;
  }
  if (tag == "break" || tag == "continue") {
    if (loop_depth_ == 0) return InvalidArgument("line {}: '{}' outside of a loop", line, tag);
    NIBBLE_RETURN_IF_ERROR(ExpectBlockEnd());
    return NewStmt(tag == "break" ? StmtKind::kBreak : StmtKind::kContinue, line);
  }
  if (std::find(kRefusedTags.begin(), kRefusedTags.end(), tag) != kRefusedTags.end()) {
    return InvalidArgument("line {}: the tag '{}' is not supported in chat templates", line, tag);
  }
  return InvalidArgument("line {}: unknown tag '{}'", line, tag);
}

Parser::StmtResult Parser::ParseIf(int line) {
  auto stmt = NewStmt(StmtKind::kIf, line);
  while (true) {
    Branch branch;
    ++if_depth_;
    NIBBLE_ASSIGN_OR_RETURN(branch.condition, ParseTuple(false, false));
    NIBBLE_RETURN_IF_ERROR(ExpectBlockEnd());
    NIBBLE_ASSIGN_OR_RETURN(branch.body, ParseBody({"elif", "else", "endif"}, "if"));
    --if_depth_;
    stmt->branches.push_back(std::move(branch));
    if (!TakeName("elif")) break;
  }
  if (TakeName("else")) {
    NIBBLE_RETURN_IF_ERROR(ExpectBlockEnd());
    ++if_depth_;
    NIBBLE_ASSIGN_OR_RETURN(stmt->orelse, ParseBody({"endif"}, "if"));
    --if_depth_;
  }
  Next();
  NIBBLE_RETURN_IF_ERROR(ExpectBlockEnd());
  return stmt;
}

Parser::StmtResult Parser::ParseFor(int line) {
  auto stmt = NewStmt(StmtKind::kFor, line);
  NIBBLE_ASSIGN_OR_RETURN(stmt->target, ParseTarget(false));
  NIBBLE_RETURN_IF_ERROR(ExpectName("in"));
  NIBBLE_ASSIGN_OR_RETURN(stmt->expr, ParseTuple(false, false));
  if (TakeName("if")) {
    NIBBLE_ASSIGN_OR_RETURN(stmt->condition, ParseExpression());
  }
  stmt->recursive = TakeName("recursive");
  NIBBLE_RETURN_IF_ERROR(ExpectBlockEnd());
  ++loop_depth_;
  NIBBLE_ASSIGN_OR_RETURN(stmt->body, ParseBody({"else", "endfor"}, "for"));
  --loop_depth_;
  if (TakeName("else")) {
    NIBBLE_RETURN_IF_ERROR(ExpectBlockEnd());
    NIBBLE_ASSIGN_OR_RETURN(stmt->orelse, ParseBody({"endfor"}, "for"));
  }
  Next();
  NIBBLE_RETURN_IF_ERROR(ExpectBlockEnd());
  return stmt;
}

Parser::StmtResult Parser::ParseSet(int line) {
  auto stmt = NewStmt(StmtKind::kSet, line);
  NIBBLE_ASSIGN_OR_RETURN(stmt->target, ParseTarget(true));
  if (TakeOperator("=")) {
    NIBBLE_ASSIGN_OR_RETURN(stmt->expr, ParseTuple(true, false));
    NIBBLE_RETURN_IF_ERROR(ExpectBlockEnd());
    return stmt;
  }
  stmt->kind = StmtKind::kSetBlock;
  if (AtOperator("|")) {
    NIBBLE_ASSIGN_OR_RETURN(stmt->expr, ParseFilters(nullptr));
  }
  NIBBLE_ASSIGN_OR_RETURN(stmt->body, ParseBodyUntil("endset", "set"));
  return stmt;
}

absl::Status Parser::ParseParameters(std::vector<Parameter>* parameters) {
  NIBBLE_RETURN_IF_ERROR(ExpectOperator("("));
  while (!TakeOperator(")")) {
    if (!parameters->empty()) NIBBLE_RETURN_IF_ERROR(ExpectOperator(","));
    if (TakeOperator(")")) break;
    Parameter parameter;
    NIBBLE_ASSIGN_OR_RETURN(parameter.name, TakeIdentifier());
    if (TakeOperator("=")) {
      NIBBLE_ASSIGN_OR_RETURN(parameter.value, ParseExpression());
    } else if (!parameters->empty() && parameters->back().value != nullptr) {
      return InvalidArgument("line {}: parameter '{}' without a default follows one with a default",
                             Peek().line, parameter.name);
    }
    parameters->push_back(std::move(parameter));
  }
  return absl::OkStatus();
}

absl::Status Parser::ParseMacroBody(std::string_view end, std::string_view opened, Stmt* macro) {
  const int outer_loops = std::exchange(loop_depth_, 0);
  const bool outer_named = std::exchange(reads_named_, false);
  const bool outer_positional = std::exchange(reads_positional_, false);
  NIBBLE_ASSIGN_OR_RETURN(macro->body, ParseBodyUntil(end, opened));
  loop_depth_ = outer_loops;
  macro->catches_named = std::exchange(reads_named_, outer_named);
  macro->catches_positional = std::exchange(reads_positional_, outer_positional);
  return absl::OkStatus();
}

Parser::StmtResult Parser::ParseMacro(int line) {
  auto stmt = NewStmt(StmtKind::kMacro, line);
  NIBBLE_ASSIGN_OR_RETURN(stmt->text, TakeIdentifier());
  NIBBLE_RETURN_IF_ERROR(ParseParameters(&stmt->parameters));
  NIBBLE_RETURN_IF_ERROR(ParseMacroBody("endmacro", "macro", stmt.get()));
  return stmt;
}

Parser::StmtResult Parser::ParseCallBlock(int line) {
  auto stmt = NewStmt(StmtKind::kCallBlock, line);
  stmt->text = "caller";
  if (AtOperator("(")) NIBBLE_RETURN_IF_ERROR(ParseParameters(&stmt->parameters));
  NIBBLE_ASSIGN_OR_RETURN(stmt->expr, ParseExpression());
  if (stmt->expr->kind != ExprKind::kCall) {
    return InvalidArgument("line {}: expected a call", line);
  }
  NIBBLE_RETURN_IF_ERROR(ParseMacroBody("endcall", "call", stmt.get()));
  return stmt;
}

Parser::StmtResult Parser::ParseFilterBlock(int line) {
  auto stmt = NewStmt(StmtKind::kFilterBlock, line);
  NIBBLE_ASSIGN_OR_RETURN(ExprPtr first, ParseFilter(nullptr));
  NIBBLE_ASSIGN_OR_RETURN(stmt->expr, ParseFilters(std::move(first)));
  NIBBLE_ASSIGN_OR_RETURN(stmt->body, ParseBodyUntil("endfilter", "filter"));
  return stmt;
}

Parser::StmtResult Parser::ParseWith(int line) {
  auto stmt = NewStmt(StmtKind::kWith, line);
  while (Peek().kind != TokenKind::kBlockEnd) {
    if (!stmt->targets.empty()) NIBBLE_RETURN_IF_ERROR(ExpectOperator(","));
    NIBBLE_ASSIGN_OR_RETURN(Target target, ParseOneTarget(false));
    NIBBLE_RETURN_IF_ERROR(ExpectOperator("="));
    Parameter parameter;
    NIBBLE_ASSIGN_OR_RETURN(parameter.value, ParseExpression());
    stmt->targets.push_back(std::move(target));
    stmt->parameters.push_back(std::move(parameter));
  }
  NIBBLE_ASSIGN_OR_RETURN(stmt->body, ParseBodyUntil("endwith", "with"));
  return stmt;
}

absl::StatusOr<Target> Parser::ParseTarget(bool with_namespace) {
  NIBBLE_ASSIGN_OR_RETURN(Target first, ParseOneTarget(with_namespace));
  if (!AtOperator(",")) return first;
  Target tuple;
  tuple.kind = Target::Kind::kTuple;
  tuple.items.push_back(std::move(first));
  while (TakeOperator(",")) {
    if (Peek().kind != TokenKind::kName && !AtOperator("(")) break;
    if (AtName("in")) break;
    NIBBLE_ASSIGN_OR_RETURN(Target item, ParseOneTarget(with_namespace));
    tuple.items.push_back(std::move(item));
  }
  return tuple;
}

absl::StatusOr<Target> Parser::ParseOneTarget(bool with_namespace) {
  if (TakeOperator("(")) {
    NIBBLE_RETURN_IF_ERROR(Enter());
    NIBBLE_ASSIGN_OR_RETURN(Target inner, ParseTarget(with_namespace));
    NIBBLE_RETURN_IF_ERROR(ExpectOperator(")"));
    --depth_;
    return inner;
  }
  Target target;
  const int line = Peek().line;
  NIBBLE_ASSIGN_OR_RETURN(target.name, TakeIdentifier());
  if (with_namespace && TakeOperator(".")) {
    target.kind = Target::Kind::kAttribute;
    NIBBLE_ASSIGN_OR_RETURN(target.attribute, TakeIdentifier());
    return target;
  }
  for (const std::string_view word : {"true", "false", "none", "True", "False", "None"}) {
    if (target.name == word) {
      return InvalidArgument("line {}: can't assign to '{}'", line, target.name);
    }
  }
  return target;
}

}  // namespace nibble::server::jinja
