// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A parsed template. Nodes are uniform (kind, text, children) because every pass over them is a
// switch on the kind. Immutable after parsing and shared by concurrent renderings.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/chat/jinja/value.h"

namespace nibble::server::jinja {

struct Filter;  // filters.h
struct Test;    // tests.h

enum class ExprKind {
  kLiteral,      // literal
  kName,         // text
  kList,         // children
  kTuple,        // children
  kDict,         // children: key, value, key, value ...
  kAttribute,    // children[0].text
  kItem,         // children[0][children[1]]
  kSlice,        // children[0][children[1]:children[2]:children[3]]; absent ones are null
  kCall,         // children[0](arguments...)
  kFilter,       // children[0] | filter(arguments...); null inside {% filter %} and block set
  kTest,         // children[0] is test(arguments...)
  kNegate,       // -children[0]
  kPlus,         // +children[0]
  kNot,          // not children[0]
  kAnd,          // all children
  kOr,           // all children
  kArithmetic,   // children[0] operators[0] children[1] operators[1] ..., from left to right
  kConcat,       // children joined by ~
  kCompare,      // children[0] operators[0] children[1] ..., as Python chains them
  kConditional,  // children[1] if children[0] else children[2]; children[2] may be null
};

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

struct Argument {
  enum class Kind { kPositional, kNamed, kSpread, kSpreadNamed } kind;
  std::string name;
  ExprPtr value;
};

struct Expr {
  ExprKind kind;
  int line;
  int height = 1;  // bounds the recursion of everything that walks the tree
  std::string text;
  Value literal;
  std::vector<ExprPtr> children;
  std::vector<std::string> operators;
  std::vector<Argument> arguments;
  const Filter* filter = nullptr;
  const Test* test = nullptr;
};

enum class StmtKind {
  kText,         // text
  kOutput,       // expr
  kSet,          // target = expr
  kSetBlock,     // target = body, through expr when there is one
  kIf,           // if expr body, otherwise orelse (elif is a kIf in branches)
  kFor,          // for target in expr if condition: body, else orelse
  kMacro,        // text(parameters): body
  kCallBlock,    // body is the caller of expr, a call
  kFilterBlock,  // body through expr
  kWith,         // parameters as assignments, body
  kBlock,        // body in place ({% generation %})
  kBreak,
  kContinue,
};

// What an assignment binds.
struct Target {
  enum class Kind { kName, kAttribute, kTuple } kind = Kind::kName;
  std::string name;       // the variable, or the namespace of kAttribute
  std::string attribute;  // of kAttribute
  std::vector<Target> items;
};

struct Parameter {
  std::string name;
  ExprPtr value;  // default of a macro's parameter, may be null; a with's value
};

struct Stmt;
using Stmts = std::vector<std::unique_ptr<Stmt>>;

struct Branch {
  ExprPtr condition;  // null: else
  Stmts body;
};

struct Stmt {
  StmtKind kind;
  int line;
  std::string text;
  ExprPtr expr;
  ExprPtr condition;
  Target target;
  std::vector<Target> targets;  // of kWith, parallel to parameters
  std::vector<Parameter> parameters;
  std::vector<Branch> branches;  // of kIf
  bool recursive = false;        // of kFor
  // Of kMacro and kCallBlock: the body reads `kwargs`, `varargs`.
  bool catches_named = false;
  bool catches_positional = false;
  Stmts body;
  Stmts orelse;
};

struct Template {
  Stmts body;
};

}  // namespace nibble::server::jinja
