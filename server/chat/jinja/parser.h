// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Recursive descent over the tokens, in the grammar and precedence of Jinja 3. Depth is counted, so
// no input can exhaust the stack, and what is not supported is refused by name.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "server/chat/jinja/ast.h"
#include "server/chat/jinja/lexer.h"

namespace nibble::server::jinja {

class Parser {
 public:
  Parser(std::vector<Token> tokens, int max_depth)
      : tokens_(std::move(tokens)), max_depth_(max_depth) {}
  absl::StatusOr<Template> Parse();

 private:
  using ExprResult = absl::StatusOr<ExprPtr>;
  using StmtResult = absl::StatusOr<std::unique_ptr<Stmt>>;

  // Tokens.
  const Token& Peek(size_t ahead = 0) const;
  const Token& Next() { return tokens_[at_ < tokens_.size() - 1 ? at_++ : at_]; }
  bool AtOperator(std::string_view text, size_t ahead = 0) const;
  bool AtName(std::string_view text, size_t ahead = 0) const;
  bool TakeOperator(std::string_view text);
  bool TakeName(std::string_view text);
  absl::Status ExpectOperator(std::string_view text);
  absl::Status ExpectName(std::string_view text);
  absl::Status ExpectBlockEnd();
  absl::StatusOr<std::string> TakeIdentifier();
  absl::Status Unexpected() const;
  std::string Describe(const Token& token) const;

  // Statements (parser.cc).
  // Up to a block tag named in `ends`, whose name is left as the current token.
  absl::StatusOr<Stmts> ParseBody(std::vector<std::string_view> ends, std::string_view opened);
  absl::Status ParseTag(const std::vector<std::string_view>& ends, std::string_view opened,
                        Stmts* body, bool* ended);
  absl::StatusOr<Stmts> ParseBodyUntil(std::string_view end, std::string_view opened);
  StmtResult ParseStatement();
  StmtResult ParseIf(int line);
  StmtResult ParseFor(int line);
  StmtResult ParseSet(int line);
  StmtResult ParseMacro(int line);
  StmtResult ParseCallBlock(int line);
  absl::Status ParseMacroBody(std::string_view end, std::string_view opened, Stmt* macro);
  StmtResult ParseWith(int line);
  StmtResult ParseFilterBlock(int line);
  absl::Status ParseParameters(std::vector<Parameter>* parameters);
  absl::StatusOr<Target> ParseTarget(bool with_namespace);
  absl::StatusOr<Target> ParseOneTarget(bool with_namespace);

  // Expressions (expression_parser.cc).
  ExprResult ParseExpression();  // with the inline if
  ExprResult ParseTuple(bool with_conditional, bool parenthesized);
  ExprResult ParseConditional();
  ExprResult ParseOr();
  ExprResult ParseAnd();
  ExprResult ParseNot();
  ExprResult ParseCompare();
  ExprResult ParseSum();
  ExprResult ParseConcat();
  ExprResult ParseProduct();
  ExprResult ParsePower();
  ExprResult ParseUnary(bool with_filters);
  ExprResult ParsePrimary();
  ExprResult ParseList();
  ExprResult ParseDict();
  ExprResult ParsePostfix(ExprPtr base);
  ExprResult ParseFilters(ExprPtr base);
  ExprResult ParseFilter(ExprPtr base);
  ExprResult ParseTest(ExprPtr base);
  ExprResult ParseSubscript(ExprPtr base);
  ExprResult ParseCall(ExprPtr base);
  absl::StatusOr<std::vector<Argument>> ParseArguments();
  // One level of operators from left to right.
  template <typename Operand>
  ExprResult ParseChain(ExprKind kind, std::vector<std::string_view> operators, Operand operand);
  ExprPtr NewExpr(ExprKind kind, int line) const;
  // Sets the height of a finished node and checks it.
  ExprResult Finish(ExprPtr expr) const;

  absl::Status Enter();
  absl::Status TooDeep(int line) const;

  std::vector<Token> tokens_;
  int max_depth_;
  int depth_ = 0;
  int if_depth_ = 0;               // ifs around the current statement
  int loop_depth_ = 0;             // loops around the current statement, for break and continue
  bool reads_named_ = false;       // `kwargs` was read since the innermost macro began
  bool reads_positional_ = false;  // `varargs`
  size_t at_ = 0;
};

}  // namespace nibble::server::jinja
