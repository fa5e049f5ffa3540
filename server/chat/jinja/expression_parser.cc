// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Expressions, loosest operator first: if-else, or, and, not, comparison, + -, ~, * / // %, **,
// unary sign, then attributes, items, calls, filters and tests.
#include <algorithm>

#include "server/chat/jinja/filters.h"
#include "server/chat/jinja/parser.h"
#include "server/chat/jinja/tests.h"

namespace nibble::server::jinja {

ExprPtr Parser::NewExpr(ExprKind kind, int line) const {
  auto expr = std::make_unique<Expr>();
  expr->kind = kind;
  expr->line = line;
  return expr;
}

Parser::ExprResult Parser::Finish(ExprPtr expr) const {
  int tallest = 0;
  for (const ExprPtr& child : expr->children) {
    if (child != nullptr) tallest = std::max(tallest, child->height);
  }
  for (const Argument& argument : expr->arguments) {
    tallest = std::max(tallest, argument.value->height);
  }
  expr->height = tallest + 1;
  if (expr->height > max_depth_) return TooDeep(expr->line);
  return expr;
}

Parser::ExprResult Parser::ParseExpression() {
  NIBBLE_RETURN_IF_ERROR(Enter());
  NIBBLE_ASSIGN_OR_RETURN(ExprPtr expr, ParseConditional());
  --depth_;
  return expr;
}

Parser::ExprResult Parser::ParseTuple(bool with_conditional, bool parenthesized) {
  const int line = Peek().line;
  NIBBLE_RETURN_IF_ERROR(Enter());
  std::vector<ExprPtr> items;
  bool is_tuple = false;
  const auto at_end = [this] {
    return Peek().kind == TokenKind::kVariableEnd || Peek().kind == TokenKind::kBlockEnd ||
           AtOperator(")");
  };
  while (!at_end()) {
    NIBBLE_ASSIGN_OR_RETURN(ExprPtr item, with_conditional ? ParseConditional() : ParseOr());
    items.push_back(std::move(item));
    if (!TakeOperator(",")) break;
    is_tuple = true;
  }
  --depth_;
  if (!is_tuple && !items.empty()) return std::move(items.front());
  if (items.empty() && !parenthesized) {
    return InvalidArgument("line {}: expected an expression, got {}", line, Describe(Peek()));
  }
  ExprPtr tuple = NewExpr(ExprKind::kTuple, line);
  tuple->children = std::move(items);
  return Finish(std::move(tuple));
}

Parser::ExprResult Parser::ParseConditional() {
  const int line = Peek().line;
  NIBBLE_ASSIGN_OR_RETURN(ExprPtr expr, ParseOr());
  while (TakeName("if")) {
    NIBBLE_ASSIGN_OR_RETURN(ExprPtr condition, ParseOr());
    ExprPtr otherwise;
    if (TakeName("else")) {
      NIBBLE_ASSIGN_OR_RETURN(otherwise, ParseExpression());
    }
    ExprPtr conditional = NewExpr(ExprKind::kConditional, line);
    conditional->children.push_back(std::move(condition));
    conditional->children.push_back(std::move(expr));
    conditional->children.push_back(std::move(otherwise));
    NIBBLE_ASSIGN_OR_RETURN(expr, Finish(std::move(conditional)));
  }
  return expr;
}

Parser::ExprResult Parser::ParseOr() {
  const int line = Peek().line;
  NIBBLE_ASSIGN_OR_RETURN(ExprPtr first, ParseAnd());
  if (!AtName("or")) return first;
  ExprPtr expr = NewExpr(ExprKind::kOr, line);
  expr->children.push_back(std::move(first));
  while (TakeName("or")) {
    NIBBLE_ASSIGN_OR_RETURN(ExprPtr next, ParseAnd());
    expr->children.push_back(std::move(next));
  }
  return Finish(std::move(expr));
}

Parser::ExprResult Parser::ParseAnd() {
  const int line = Peek().line;
  NIBBLE_ASSIGN_OR_RETURN(ExprPtr first, ParseNot());
  if (!AtName("and")) return first;
  ExprPtr expr = NewExpr(ExprKind::kAnd, line);
  expr->children.push_back(std::move(first));
  while (TakeName("and")) {
    NIBBLE_ASSIGN_OR_RETURN(ExprPtr next, ParseNot());
    expr->children.push_back(std::move(next));
  }
  return Finish(std::move(expr));
}

Parser::ExprResult Parser::ParseNot() {
  if (!AtName("not")) return ParseCompare();
  const int line = Next().line;
  NIBBLE_RETURN_IF_ERROR(Enter());
  ExprPtr expr = NewExpr(ExprKind::kNot, line);
  NIBBLE_ASSIGN_OR_RETURN(ExprPtr operand, ParseNot());
  --depth_;
  expr->children.push_back(std::move(operand));
  return Finish(std::move(expr));
}

Parser::ExprResult Parser::ParseCompare() {
  const int line = Peek().line;
  NIBBLE_ASSIGN_OR_RETURN(ExprPtr first, ParseSum());
  ExprPtr expr = NewExpr(ExprKind::kCompare, line);
  while (true) {
    std::string op;
    for (const std::string_view candidate : {"==", "!=", "<", "<=", ">", ">="}) {
      if (AtOperator(candidate)) op = candidate;
    }
    if (AtName("in")) op = "in";
    if (AtName("not") && AtName("in", 1)) {
      Next();
      op = "not in";
    }
    if (op.empty()) break;
    Next();
    NIBBLE_ASSIGN_OR_RETURN(ExprPtr operand, ParseSum());
    expr->operators.push_back(std::move(op));
    expr->children.push_back(std::move(operand));
  }
  if (expr->operators.empty()) return first;
  expr->children.insert(expr->children.begin(), std::move(first));
  return Finish(std::move(expr));
}

template <typename Operand>
Parser::ExprResult Parser::ParseChain(ExprKind kind, std::vector<std::string_view> operators,
                                      Operand operand) {
  const int line = Peek().line;
  NIBBLE_ASSIGN_OR_RETURN(ExprPtr first, operand());
  ExprPtr expr = NewExpr(kind, line);
  expr->children.push_back(std::move(first));
  while (Peek().kind == TokenKind::kOperator &&
         std::find(operators.begin(), operators.end(), Peek().text) != operators.end()) {
    expr->operators.push_back(Next().text);
    NIBBLE_ASSIGN_OR_RETURN(ExprPtr next, operand());
    expr->children.push_back(std::move(next));
  }
  if (expr->operators.empty()) return std::move(expr->children.front());
  return Finish(std::move(expr));
}

Parser::ExprResult Parser::ParseSum() {
  return ParseChain(ExprKind::kArithmetic, {"+", "-"}, [this] { return ParseConcat(); });
}

Parser::ExprResult Parser::ParseConcat() {
  return ParseChain(ExprKind::kConcat, {"~"}, [this] { return ParseProduct(); });
}

Parser::ExprResult Parser::ParseProduct() {
  return ParseChain(ExprKind::kArithmetic, {"*", "/", "//", "%"}, [this] { return ParsePower(); });
}

Parser::ExprResult Parser::ParsePower() {
  return ParseChain(ExprKind::kArithmetic, {"**"}, [this] { return ParseUnary(true); });
}

Parser::ExprResult Parser::ParseUnary(bool with_filters) {
  ExprPtr expr;
  if (AtOperator("-") || AtOperator("+")) {
    const Token& sign = Next();
    NIBBLE_RETURN_IF_ERROR(Enter());
    ExprPtr node = NewExpr(sign.text == "-" ? ExprKind::kNegate : ExprKind::kPlus, sign.line);
    NIBBLE_ASSIGN_OR_RETURN(ExprPtr operand, ParseUnary(false));
    --depth_;
    node->children.push_back(std::move(operand));
    NIBBLE_ASSIGN_OR_RETURN(expr, Finish(std::move(node)));
  } else {
    NIBBLE_ASSIGN_OR_RETURN(expr, ParsePrimary());
  }
  NIBBLE_ASSIGN_OR_RETURN(expr, ParsePostfix(std::move(expr)));
  return with_filters ? ParseFilters(std::move(expr)) : ExprResult(std::move(expr));
}

Parser::ExprResult Parser::ParsePrimary() {
  const Token& token = Peek();
  ExprPtr expr = NewExpr(ExprKind::kLiteral, token.line);
  switch (token.kind) {
    case TokenKind::kName:
      Next();
      if (token.text == "true" || token.text == "True") {
        expr->literal = Value(true);
      } else if (token.text == "false" || token.text == "False") {
        expr->literal = Value(false);
      } else if (token.text == "none" || token.text == "None") {
        expr->literal = Value(None{});
      } else {
        expr->kind = ExprKind::kName;
        expr->text = token.text;
        reads_named_ = reads_named_ || token.text == "kwargs";
        reads_positional_ = reads_positional_ || token.text == "varargs";
      }
      return expr;
    case TokenKind::kString: {
      std::string text;
      while (Peek().kind == TokenKind::kString) text += Next().text;
      expr->literal = Value(std::move(text));
      return expr;
    }
    case TokenKind::kInteger:
      expr->literal = Value(Next().integer);
      return expr;
    case TokenKind::kFloat:
      expr->literal = Value(Next().number);
      return expr;
    default:
      break;
  }
  if (TakeOperator("(")) {
    NIBBLE_ASSIGN_OR_RETURN(ExprPtr inner, ParseTuple(true, true));
    NIBBLE_RETURN_IF_ERROR(ExpectOperator(")"));
    return inner;
  }
  if (AtOperator("[")) return ParseList();
  if (AtOperator("{")) return ParseDict();
  return Unexpected();
}

Parser::ExprResult Parser::ParseList() {
  ExprPtr expr = NewExpr(ExprKind::kList, Next().line);
  while (!TakeOperator("]")) {
    if (!expr->children.empty()) NIBBLE_RETURN_IF_ERROR(ExpectOperator(","));
    if (TakeOperator("]")) break;
    NIBBLE_ASSIGN_OR_RETURN(ExprPtr item, ParseExpression());
    expr->children.push_back(std::move(item));
  }
  return Finish(std::move(expr));
}

Parser::ExprResult Parser::ParseDict() {
  ExprPtr expr = NewExpr(ExprKind::kDict, Next().line);
  while (!TakeOperator("}")) {
    if (!expr->children.empty()) NIBBLE_RETURN_IF_ERROR(ExpectOperator(","));
    if (TakeOperator("}")) break;
    NIBBLE_ASSIGN_OR_RETURN(ExprPtr key, ParseExpression());
    NIBBLE_RETURN_IF_ERROR(ExpectOperator(":"));
    NIBBLE_ASSIGN_OR_RETURN(ExprPtr value, ParseExpression());
    expr->children.push_back(std::move(key));
    expr->children.push_back(std::move(value));
  }
  return Finish(std::move(expr));
}

Parser::ExprResult Parser::ParsePostfix(ExprPtr base) {
  while (true) {
    if (AtOperator("(")) {
      NIBBLE_ASSIGN_OR_RETURN(base, ParseCall(std::move(base)));
    } else if (AtOperator(".") || AtOperator("[")) {
      NIBBLE_ASSIGN_OR_RETURN(base, ParseSubscript(std::move(base)));
    } else {
      return base;
    }
  }
}

Parser::ExprResult Parser::ParseFilters(ExprPtr base) {
  while (true) {
    if (TakeOperator("|")) {
      NIBBLE_ASSIGN_OR_RETURN(base, ParseFilter(std::move(base)));
    } else if (base != nullptr && AtName("is")) {
      Next();
      NIBBLE_ASSIGN_OR_RETURN(base, ParseTest(std::move(base)));
    } else if (base != nullptr && AtOperator("(")) {
      NIBBLE_ASSIGN_OR_RETURN(base, ParseCall(std::move(base)));
    } else {
      return base;
    }
  }
}

Parser::ExprResult Parser::ParseFilter(ExprPtr base) {
  ExprPtr expr = NewExpr(ExprKind::kFilter, Peek().line);
  NIBBLE_ASSIGN_OR_RETURN(expr->text, TakeIdentifier());
  expr->filter = FindFilter(expr->text);
  // As in Jinja, one behind an if may be unknown as long as it is not reached.
  if (expr->filter == nullptr && if_depth_ == 0) {
    return InvalidArgument("line {}: unknown filter '{}'", expr->line, expr->text);
  }
  if (AtOperator("(")) {
    NIBBLE_ASSIGN_OR_RETURN(expr->arguments, ParseArguments());
  }
  expr->children.push_back(std::move(base));
  return Finish(std::move(expr));
}

Parser::ExprResult Parser::ParseTest(ExprPtr base) {
  const int line = Peek().line;
  const bool negated = TakeName("not");
  ExprPtr expr = NewExpr(ExprKind::kTest, line);
  NIBBLE_ASSIGN_OR_RETURN(expr->text, TakeIdentifier());
  expr->test = FindTest(expr->text);
  if (expr->test == nullptr && if_depth_ == 0) {
    return InvalidArgument("line {}: unknown test '{}'", line, expr->text);
  }
  const TokenKind kind = Peek().kind;
  const bool literal =
      kind == TokenKind::kString || kind == TokenKind::kInteger || kind == TokenKind::kFloat;
  const bool name = kind == TokenKind::kName && !AtName("else") && !AtName("or") && !AtName("and");
  if (AtOperator("(")) {
    NIBBLE_ASSIGN_OR_RETURN(expr->arguments, ParseArguments());
  } else if (name && AtName("is")) {
    return InvalidArgument("line {}: tests cannot be chained with 'is'", line);
  } else if ((name && !AtName("if") && !AtName("not") && !AtName("in") && !AtName("recursive")) ||
             literal || AtOperator("[") || AtOperator("{")) {
    NIBBLE_ASSIGN_OR_RETURN(ExprPtr argument, ParsePrimary());
    NIBBLE_ASSIGN_OR_RETURN(argument, ParsePostfix(std::move(argument)));
    expr->arguments.push_back({Argument::Kind::kPositional, "", std::move(argument)});
  }
  expr->children.push_back(std::move(base));
  NIBBLE_ASSIGN_OR_RETURN(expr, Finish(std::move(expr)));
  if (!negated) return expr;
  ExprPtr negation = NewExpr(ExprKind::kNot, line);
  negation->children.push_back(std::move(expr));
  return Finish(std::move(negation));
}

Parser::ExprResult Parser::ParseSubscript(ExprPtr base) {
  const int line = Peek().line;
  if (TakeOperator(".")) {
    const bool item = Peek().kind == TokenKind::kInteger;
    if (!item && Peek().kind != TokenKind::kName) return Unexpected();
    const Token& name = Next();
    ExprPtr expr = NewExpr(item ? ExprKind::kItem : ExprKind::kAttribute, line);
    expr->children.push_back(std::move(base));
    if (item) {
      expr->children.push_back(NewExpr(ExprKind::kLiteral, line));
      expr->children.back()->literal = Value(name.integer);
    } else {
      expr->text = name.text;
    }
    return Finish(std::move(expr));
  }
  NIBBLE_RETURN_IF_ERROR(ExpectOperator("["));
  ExprPtr expr = NewExpr(ExprKind::kItem, line);
  expr->children.push_back(std::move(base));
  ExprPtr parts[3];
  size_t part = 0;
  bool is_tuple = false;
  while (!AtOperator("]")) {
    if (TakeOperator(":")) {
      expr->kind = ExprKind::kSlice;
      if (++part > 2) return Unexpected();
      continue;
    }
    if (parts[part] != nullptr) {
      if (expr->kind == ExprKind::kSlice || !TakeOperator(",")) return Unexpected();
      if (!is_tuple) {
        ExprPtr tuple = NewExpr(ExprKind::kTuple, line);
        tuple->children.push_back(std::move(parts[0]));
        parts[0] = std::move(tuple);
        is_tuple = true;
      }
      if (AtOperator("]")) break;
      NIBBLE_ASSIGN_OR_RETURN(ExprPtr item, ParseExpression());
      parts[0]->children.push_back(std::move(item));
      continue;
    }
    NIBBLE_ASSIGN_OR_RETURN(parts[part], ParseExpression());
  }
  if (expr->kind == ExprKind::kItem && parts[0] == nullptr) return Unexpected();
  if (expr->kind == ExprKind::kSlice && is_tuple) return Unexpected();
  Next();
  if (is_tuple) {
    NIBBLE_ASSIGN_OR_RETURN(parts[0], Finish(std::move(parts[0])));
  }
  const size_t num_parts = expr->kind == ExprKind::kSlice ? 3 : 1;
  for (size_t index = 0; index < num_parts; ++index) {
    expr->children.push_back(std::move(parts[index]));
  }
  return Finish(std::move(expr));
}

Parser::ExprResult Parser::ParseCall(ExprPtr base) {
  ExprPtr expr = NewExpr(ExprKind::kCall, Peek().line);
  NIBBLE_ASSIGN_OR_RETURN(expr->arguments, ParseArguments());
  expr->children.push_back(std::move(base));
  return Finish(std::move(expr));
}

absl::StatusOr<std::vector<Argument>> Parser::ParseArguments() {
  NIBBLE_RETURN_IF_ERROR(ExpectOperator("("));
  std::vector<Argument> arguments;
  bool named = false;
  while (!TakeOperator(")")) {
    if (!arguments.empty()) NIBBLE_RETURN_IF_ERROR(ExpectOperator(","));
    if (TakeOperator(")")) break;
    Argument argument{Argument::Kind::kPositional, "", nullptr};
    if (TakeOperator("*")) {
      argument.kind = Argument::Kind::kSpread;
    } else if (TakeOperator("**")) {
      argument.kind = Argument::Kind::kSpreadNamed;
      named = true;
    } else if (Peek().kind == TokenKind::kName && AtOperator("=", 1)) {
      argument.kind = Argument::Kind::kNamed;
      argument.name = Next().text;
      Next();
      named = true;
    } else if (named) {
      return InvalidArgument("line {}: a positional argument follows a named one", Peek().line);
    }
    NIBBLE_ASSIGN_OR_RETURN(argument.value, ParseExpression());
    arguments.push_back(std::move(argument));
  }
  return arguments;
}

}  // namespace nibble::server::jinja
