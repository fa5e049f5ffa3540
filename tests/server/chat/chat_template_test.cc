// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/chat/chat_template.h"

#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::server {
namespace {

using testing::HasSubstr;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

// What a test takes must not depend on how fast the machine is.
TemplateLimits Untimed() {
  TemplateLimits limits;
  limits.max_milliseconds = std::numeric_limits<int64_t>::max();
  return limits;
}

absl::StatusOr<std::string> Render(
    std::string source, const TemplateLimits& limits = Untimed(),
    const nlohmann::ordered_json& variables = nlohmann::ordered_json::object()) {
  auto parsed = ChatTemplate::Parse(std::move(source), limits);
  if (!parsed.ok()) return parsed.status();
  return (*parsed)->Render(variables, 0);
}

std::string RenderError(std::string source, const TemplateLimits& limits = Untimed()) {
  const absl::StatusOr<std::string> text = Render(std::move(source), limits);
  if (text.ok()) return "rendered " + std::to_string(text->size()) + " bytes";
  EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument);
  return Message(text.status());
}

std::string Repeat(std::string_view text, int count) {
  std::string out;
  for (int index = 0; index < count; ++index) out += text;
  return out;
}

TEST(ChatTemplateTest, ErrorsNameTheLine) {
  EXPECT_THAT(RenderError("a\n\n{{ 1 + none }}"), HasSubstr("line 3"));
  EXPECT_THAT(RenderError("a\n{% if %}"), HasSubstr("line 2"));
  EXPECT_THAT(RenderError("{{ 'x'\n | upper\n | shout }}"),
              HasSubstr("line 3: unknown filter 'shout'"));
}

TEST(ChatTemplateTest, RaisedMessageIsTheWholeError) {
  EXPECT_EQ(RenderError("{{ raise_exception('roles must alternate') }}"), "roles must alternate");
}

TEST(ChatTemplateTest, TagsThatReachOtherTemplatesAreRefusedByName) {
  for (const std::string tag : {"include 'x'", "import 'x' as y", "from 'x' import y",
                                "extends 'x'", "block b", "autoescape true", "do 1"}) {
    EXPECT_THAT(RenderError("{% " + tag + " %}"),
                HasSubstr("'" + tag.substr(0, tag.find(' ')) + "'"));
  }
}

TEST(ChatTemplateTest, TemplateSizeIsLimited) {
  TemplateLimits limits = Untimed();
  limits.max_template_bytes = 100;
  EXPECT_TRUE(Render(std::string(100, 'x'), limits).ok());
  const std::string message = RenderError(std::string(101, 'x'), limits);
  EXPECT_THAT(message, HasSubstr("101"));
  EXPECT_THAT(message, HasSubstr("100"));
}

TEST(ChatTemplateTest, InvalidUtf8IsRefused) {
  EXPECT_THAT(RenderError("a\xff"), HasSubstr("UTF-8"));
}

TEST(ChatTemplateTest, OutputIsLimited) {
  TemplateLimits limits = Untimed();
  limits.max_output_bytes = 1000;
  EXPECT_THAT(RenderError("{% for x in range(300) %}12345{% endfor %}", limits),
              HasSubstr("1000 bytes"));
  EXPECT_THAT(RenderError("{% set x %}" + std::string(1001, 'a') + "{% endset %}", limits),
              HasSubstr("1000 bytes"));
  EXPECT_TRUE(Render("{% for x in range(200) %}12345{% endfor %}", limits).ok());
}

TEST(ChatTemplateTest, StepsAreLimited) {
  TemplateLimits limits = Untimed();
  limits.max_steps = 10'000;
  EXPECT_THAT(
      RenderError("{% for x in range(200) %}{% for y in range(200) %}{% endfor %}{% endfor %}",
                  limits),
      HasSubstr("10000 steps"));
  EXPECT_THAT(RenderError("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}"),
              HasSubstr("limit"));
}

// Each of these walks or copies 64 KiB, or does as much in small pieces, in a few nodes: the limit
// stops them only when that work is charged.
TEST(ChatTemplateTest, WorkInsideOneNodeIsCharged) {
  TemplateLimits limits = Untimed();
  limits.max_steps = 40'000;
  const std::string names =
      "{% set b = 'a' * 65536 %}{% set blank = ' ' * 65536 %}{% set d = {b: 1} %}"
      "{% set flags = '%' ~ '-' * 65536 ~ '.0s' %}{% set zeros = [0] * 2000 %}"
      "{% set n = namespace() %}";
  for (const std::string expression : {"b.isalpha()",
                                       "b.isalnum()",
                                       "b.islower()",
                                       "b.islower() and b.isupper()",
                                       "blank.isspace()",
                                       "blank.strip()",
                                       "blank.rstrip()",
                                       "blank|trim",
                                       "b.strip('a')",
                                       "'a'.strip(b)",
                                       "b.title()",
                                       "b|title",
                                       "b|urlencode",
                                       "b|wordcount",
                                       "b is lower",
                                       "blank|int",
                                       "blank|float",
                                       "b.split()",
                                       "b.splitlines()",
                                       "b.find('b')",
                                       "b.count('b')",
                                       "b.replace('b', '')",
                                       "b.partition('b')",
                                       "'b' in b",
                                       "b.startswith(b ~ '')",
                                       "b.removeprefix('a')",
                                       "'%.0s' % b",
                                       "'%.0s' % (b,)",
                                       "'%.0r' % (b,)",
                                       "'%.0s' % (zeros,)",
                                       "flags % 1",
                                       "'%.5000f' % 1.5",
                                       "'{}'.format(zeros)",
                                       "b.format()",
                                       "b[:1]",
                                       "b[0]",
                                       "b|first",
                                       "b|last",
                                       "none[b]",
                                       "n[b]",
                                       "''|attr(b)",
                                       "d|attr(b)",
                                       "d[b]",
                                       "d.get(b)",
                                       "b in d",
                                       "{b: 1}",
                                       "namespace(d)",
                                       "dict(d)",
                                       "1|tojson(separators=(b, b))",
                                       "1|tojson(indent=b)",
                                       "b|tojson",
                                       "zeros|tojson",
                                       "zeros ~ ''",
                                       "zeros|string",
                                       "zeros|join",
                                       "''|indent(b)",
                                       "''|truncate(99999, false, b)",
                                       "[1]|map(attribute=b)|list",

                                       "[b]|sort",
                                       "[b]|unique|list",
                                       "[b, b]|max",
                                       "[b]|groupby(0)|list",
                                       "zeros[::2]",
                                       "zeros + zeros",
                                       "zeros|reverse|list",
                                       "zeros == zeros ~ '' or zeros == zeros + []",
                                       "1 in zeros",
                                       "zeros.count(1)",
                                       "range(2000)",
                                       "b ~ ''",
                                       "b + 'a'",
                                       "b * 1",
                                       "b|e"}) {
    const std::string source =
        names + "{% for i in range(200) %}{% set x = " + expression + " %}{% endfor %}";
    const std::string message = RenderError(source, limits);
    EXPECT_THAT(message, HasSubstr("40000 steps")) << expression;
  }
}

TEST(ChatTemplateTest, BindingManyParametersIsCharged) {
  TemplateLimits limits = Untimed();
  limits.max_steps = 40'000;
  std::string parameters;
  std::string entries;
  for (int index = 0; index < 500; ++index) {
    parameters += "p" + std::to_string(index) + ",";
    entries += "'p" + std::to_string(index) + "': 1,";
  }
  EXPECT_THAT(RenderError("{% macro f(" + parameters + ") %}{% endmacro %}{% set d = {" + entries +
                              "} %}{% for i in range(5) %}{{ f(**d) }}{% endfor %}",
                          limits),
              HasSubstr("40000 steps"));
}

TEST(ChatTemplateTest, TimeIsLimited) {
  TemplateLimits limits;
  limits.max_milliseconds = 0;
  EXPECT_THAT(RenderError("x", limits), HasSubstr("limit of 0 milliseconds"));
  // Far more than a millisecond of work: without looking at the clock again it would not end.
  limits.max_milliseconds = 1;
  limits.max_steps = std::numeric_limits<int64_t>::max();
  const std::string loop = "{% for i in range(100000) %}";
  const std::string end = "{% endfor %}";
  EXPECT_THAT(RenderError(loop + loop + loop + end + end + end, limits),
              HasSubstr("limit of 1 milliseconds"));
}

TEST(ChatTemplateTest, NamesAreLimited) {
  EXPECT_EQ(*Render("{{ " + std::string(255, 'x') + " }}", Untimed()), "");
  const std::string message = RenderError("{{ " + std::string(256, 'x') + " }}");
  EXPECT_THAT(message, HasSubstr("256 bytes"));
  EXPECT_THAT(message, HasSubstr("255"));
}

TEST(ChatTemplateTest, JoiningWhatIsUndefinedDoesNotGrowUnseen) {
  TemplateLimits limits = Untimed();
  limits.max_output_bytes = 1000;
  EXPECT_THAT(RenderError("{{ ([x] * 1000)|join('a' * 1000) }}", limits),
              HasSubstr("text longer than the limit of 1000 bytes"));
}

TEST(ChatTemplateTest, FiltersMayNotNestWithoutEnd) {
  EXPECT_THAT(RenderError("{{ 'a'|map(*(['map'] * 2000))|list }}"), HasSubstr("limit of 512"));
}

TEST(ChatTemplateTest, ChainsOfObjectsAreLimited) {
  // Freeing a chain recurses as deep as it is long.
  for (const std::string next :
       {"cycler(n.x)", "joiner(n.x)", "[n.x].count", "cycler(n.x).next", "{1: n.x}.get"}) {
    EXPECT_THAT(RenderError("{% set n = namespace(x=1) %}{% for i in range(200) %}{% set n.x = " +
                            next + " %}{% endfor %}"),
                HasSubstr("128"))
        << next;
  }
  EXPECT_THAT(RenderError("{% set n = namespace(x=1) %}{% for i in range(200) %}"
                          "{% for y in [n.x] %}{% set n.x = loop %}{% endfor %}{% endfor %}"),
              HasSubstr("128"));
}

TEST(ChatTemplateTest, GrowthIsRefusedBeforeItIsAllocated) {
  for (const std::string source : {
           "{{ 'a' * 1000000000 }}",
           "{{ 1000000000000 * 'ab' }}",
           "{{ ([0] * 1000000000)|length }}",
           "{{ [] * 9223372036854775807 ~ ([1, 2] * 9223372036854775807) }}",
           "{{ range(1000000000) }}",
           "{{ range(-9223372036854775807, 9223372036854775807, 2) }}",
           "{{ 'a'.center(1000000000) }}",
           "{{ 'a'.zfill(9223372036854775807) }}",
           "{{ '%1000000000d' % 1 }}",
           "{{ 'a'|indent(1000000000, true) }}",
           "{{ [1]|batch(1000000000, 'x')|list }}",
           "{{ [[1]]|tojson(indent=1000000000) }}",
       }) {
    EXPECT_THAT(RenderError(source), testing::Not(testing::StartsWith("rendered"))) << source;
  }
}

TEST(ChatTemplateTest, DoublingHitsALimit) {
  // 2^60 characters, list items, and parts of a shared list.
  EXPECT_THAT(RenderError("{% set n = namespace(x='ab') %}{% for i in range(60) %}"
                          "{% set n.x = n.x + n.x %}{% endfor %}"),
              HasSubstr("limit"));
  EXPECT_THAT(RenderError("{% set n = namespace(x=[1, 2]) %}{% for i in range(60) %}"
                          "{% set n.x = n.x + n.x %}{% endfor %}"),
              HasSubstr("limit"));
  EXPECT_THAT(RenderError("{% set n = namespace(x=[1], y=[1]) %}{% for i in range(60) %}"
                          "{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}{% endfor %}"
                          "{{ n.x == n.y }}"),
              HasSubstr("parts"));
  EXPECT_THAT(RenderError("{% set n = namespace(x=[1]) %}{% for i in range(1000) %}"
                          "{% set n.x = [n.x] %}{% endfor %}"),
              HasSubstr("128"));
}

TEST(ChatTemplateTest, IntegersStayWithin64Bits) {
  for (const std::string source :
       {"{{ 9223372036854775807 + 1 }}", "{{ 9223372036854775807 * 2 }}", "{{ 2 ** 63 }}",
        "{{ -9223372036854775807 - 2 }}", "{{ 10 ** 1000000000000 }}",
        "{{ (-9223372036854775807 - 1) // -1 }}", "{{ -(-9223372036854775807 - 1) }}",
        "{{ (-9223372036854775807 - 1)|abs }}", "{{ 99999999999999999999 }}", "{{ 1e300|int }}"}) {
    EXPECT_THAT(RenderError(source), HasSubstr("64 bits")) << source;
  }
  EXPECT_EQ(*Render("{{ 2 ** 62 }} {{ (-9223372036854775807 - 1) % -1 }}"),
            "4611686018427387904 0");
}

TEST(ChatTemplateTest, NestingIsLimitedWithoutExhaustingTheStack) {
  const int many = 80'000;  // of the longest, a template just below the size limit
  for (const auto& [open, close] :
       std::vector<std::pair<std::string, std::string>>{{"(", ")"},
                                                        {"[", "]"},
                                                        {"{1:", "}"},
                                                        {"f(", ")"},
                                                        {"a[", "]"},
                                                        {"-", ""},
                                                        {"not ", ""},
                                                        {"+", ""},
                                                        {"1 if 1 else ", ""},
                                                        {"x|default(", ")"}}) {
    const std::string source = "{{ " + Repeat(open, many) + "1" + Repeat(close, many) + " }}";
    EXPECT_THAT(RenderError(source), HasSubstr("limit of 128")) << open;
  }
  EXPECT_THAT(RenderError("{{ a" + Repeat(".b", many) + " }}"), HasSubstr("limit of 128"));
  EXPECT_THAT(RenderError("{{ a" + Repeat("|e", many) + " }}"), HasSubstr("limit of 128"));
  EXPECT_THAT(RenderError("{{ a" + Repeat("()", many) + " }}"), HasSubstr("limit of 128"));
  EXPECT_THAT(RenderError(Repeat("{% if 1 %}", many / 2)), HasSubstr("limit of 128"));
  EXPECT_THAT(RenderError(Repeat("{% for x in y %}", many / 2)), HasSubstr("limit of 128"));
  EXPECT_THAT(RenderError("{% set " + Repeat("(", many) + "x" + Repeat(")", many) + " = 1 %}"),
              HasSubstr("limit of 128"));
  EXPECT_THAT(RenderError("{% macro f(n) %}{{ [[[[f(n + 1)]]]] }}{% endmacro %}{{ f(0) }}"),
              HasSubstr("limit of 512"));
}

TEST(ChatTemplateTest, LongFlatExpressionsAreNotNesting) {
  EXPECT_EQ(*Render("{{ 0" + Repeat(" + 1", 5000) + " }}"), "5000");
  EXPECT_EQ(Render("{{ ''" + Repeat(" ~ 'x'", 5000) + " }}")->size(), 5000U);
  EXPECT_EQ(*Render("{{ 1" + Repeat(" and 1", 5000) + " }}"), "1");
  EXPECT_EQ(*Render("{% if 0 %}" + Repeat("{% elif 0 %}", 5000) + "{% else %}z{% endif %}"), "z");
}

TEST(ChatTemplateTest, DeepVariablesAreRefused) {
  nlohmann::ordered_json deep = 1;
  for (int level = 0; level < 1000; ++level)
    deep = nlohmann::ordered_json::array({std::move(deep)});
  const auto text = Render("x", Untimed(), {{"deep", deep}});
  ASSERT_FALSE(text.ok());
  EXPECT_THAT(Message(text.status()), HasSubstr("128"));
}

TEST(ChatTemplateTest, NamespacesMayHoldThemselves) {
  // Cycles and long chains are freed (the leak checker watches).
  EXPECT_EQ(*Render("{% set n = namespace() %}{% set n.me = n %}{{ n.me.me is sameas n }}"),
            "True");
  EXPECT_TRUE(Render("{% set n = namespace(head=none) %}{% for x in range(50000) %}"
                     "{% set n.head = namespace(next=n.head) %}{% endfor %}")
                  .ok());
  EXPECT_TRUE(Render("{% set n = namespace() %}{% for x in range(3) %}{{ loop.changed(loop) }}"
                     "{% set n.f = loop.changed %}{% set n.l = loop %}{% endfor %}"
                     "{{ n.f(n.l) }}{{ n.l.index }}")
                  .ok());
}

TEST(ChatTemplateTest, MacroMayNotOutliveItsBlock) {
  EXPECT_THAT(RenderError("{% set n = namespace() %}{% for x in [1] %}{% macro m() %}{{ x }}"
                          "{% endmacro %}{% set n.m = m %}{% endfor %}{{ n.m() }}"),
              HasSubstr("macro 'm'"));
}

TEST(ChatTemplateTest, SearchCostIsCounted) {
  // 1 MB of a's searched for half a million a's and a b, again and again: quadratic in text.
  EXPECT_THAT(RenderError("{% set a = 'a' * 1000000 %}{% set b = 'a' * 500000 + 'b' %}"
                          "{% for x in range(1000) %}{{ b in a }}{% endfor %}"),
              HasSubstr("steps"));
}

TEST(ChatTemplateTest, KeyOrderIsKept) {
  EXPECT_EQ(*Render("{{ x|tojson }}", {}, {{"x", {{"z", 1}, {"a", 2}, {"m", 3}}}}),
            R"({"z": 1, "a": 2, "m": 3})");
}

TEST(ChatTemplateTest, ManyKeysAreFound) {
  nlohmann::ordered_json many;
  for (int key = 0; key < 100; ++key) many["k" + std::to_string(key)] = key;
  EXPECT_EQ(*Render("{{ x.k99 }}{{ x['k0'] }}{{ x.q }}{{ 'k50' in x }}", {}, {{"x", many}}),
            "990True");
}

TEST(ChatTemplateTest, UnsignedBeyondInt64IsRefused) {
  const auto text = Render("x", {}, {{"big", uint64_t{18446744073709551615U}}});
  ASSERT_FALSE(text.ok());
  EXPECT_THAT(Message(text.status()), HasSubstr("18446744073709551615"));
}

TEST(ChatTemplateTest, VariablesMustBeAnObject) {
  EXPECT_FALSE(Render("x", {}, nlohmann::ordered_json::array()).ok());
}

TEST(ChatTemplateTest, TimeIsUtcOfTheGivenSecond) {
  auto parsed = ChatTemplate::Parse("{{ strftime_now('%Y-%m-%d %H:%M:%S') }}");
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(*(*parsed)->Render(nlohmann::ordered_json::object(), 951782400), "2000-02-29 00:00:00");
}

TEST(ChatTemplateTest, RenderIsThreadSafe) {
  auto parsed =
      ChatTemplate::Parse("{% for m in messages %}{{ m|upper }}{{ loop.index }}{% endfor %}");
  ASSERT_TRUE(parsed.ok());
  std::vector<std::thread> threads;
  std::vector<std::string> results(4);
  for (size_t at = 0; at < results.size(); ++at) {
    threads.emplace_back([&, at] {
      for (int turn = 0; turn < 50; ++turn) {
        results[at] = (*parsed)->Render({{"messages", {"a", "b"}}}, 0).value_or("failed");
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(results, testing::Each("A1B2"));
}

}  // namespace
}  // namespace nibble::server
