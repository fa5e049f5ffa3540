// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/recipe.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::quantize {
namespace {

using ::testing::HasSubstr;

std::string Steps(std::string_view text) {
  const auto recipe = ParseRecipe(text);
  return recipe.ok() ? ToString(*recipe) : std::string(recipe.status().message());
}

TEST(RecipeTest, NamesStandForSteps) {
  EXPECT_EQ(Steps("rtn"), "rtn");
  EXPECT_EQ(Steps("gptq"), "gptq");
  EXPECT_EQ(Steps("awq"), "awq,clip,rtn");
  EXPECT_EQ(Steps("odyssey"), "clip,gptq");
  EXPECT_EQ(Steps("fptq"), "fptq,gptq");
  EXPECT_EQ(Steps("awq,gptq"), "awq,gptq");
  EXPECT_EQ(Steps("awq,rtn"), "awq,rtn");
  EXPECT_EQ(Steps("fptq,clip,gptq"), "fptq,clip,gptq");
  EXPECT_TRUE(ParseRecipe("rtn")->IsRtn());
  EXPECT_FALSE(ParseRecipe("clip,rtn")->IsRtn());
}

TEST(RecipeTest, ContradictionsAreRefusedByName) {
  EXPECT_THAT(Steps("awq,fptq,gptq"), HasSubstr("awq and fptq exclude each other"));
  EXPECT_THAT(Steps("rtn,gptq"), HasSubstr("rtn and gptq exclude each other"));
  EXPECT_THAT(Steps("clip,clip,gptq"), HasSubstr("clip is given twice"));
  EXPECT_THAT(Steps("gptq,awq"), HasSubstr("awq comes before gptq"));
  EXPECT_THAT(Steps("clip,awq,rtn"), HasSubstr("awq comes before clip"));
  EXPECT_THAT(Steps("awq,clip"), HasSubstr("without a rounding"));
  EXPECT_THAT(Steps("odyssey,gptq"), HasSubstr("a recipe of its own"));
  for (const char* unknown : {"", ",", "smoothquant", "rtn,", "awq, gptq"}) {
    const auto recipe = ParseRecipe(unknown);
    EXPECT_EQ(recipe.status().code(), absl::StatusCode::kUnimplemented) << unknown;
    EXPECT_THAT(std::string(recipe.status().message()), HasSubstr("supported: rtn, gptq"));
  }
}

TEST(RecipeTest, SchemesAndGroups) {
  EXPECT_EQ(ParseScheme("w4a4").status().code(), absl::StatusCode::kUnimplemented);
  const Scheme w4a8 = *ParseScheme("w4a8");
  const Scheme w8a8 = *ParseScheme("w8a8");
  EXPECT_EQ(*ParseGroupSize("", w4a8), 128);
  EXPECT_EQ(*ParseGroupSize("32", w4a8), 32);
  EXPECT_EQ(*ParseGroupSize("channel", w4a8), kChannelGroup);
  EXPECT_EQ(*ParseGroupSize("-1", *ParseScheme("w4a16")), kChannelGroup);
  EXPECT_EQ(*ParseGroupSize("", w8a8), kChannelGroup);
  for (const char* bad : {"0", "12", "-2", "65544", "128x", " 64", "99999999999999999999"}) {
    EXPECT_THAT(std::string(ParseGroupSize(bad, w4a8).status().message()), HasSubstr(bad));
  }
  EXPECT_THAT(std::string(ParseGroupSize("128", w8a8).status().message()),
              HasSubstr("one scale per output channel"));
  EXPECT_EQ(SchemeOf(w4a8, kChannelGroup, 88).group_size, 88);
  EXPECT_EQ(SchemeOf(w8a8, kChannelGroup, 88).bits, 8);
  EXPECT_EQ(SchemeOf(*ParseScheme("w4a16"), 64, 128).activation_bits, 16);
}

}  // namespace
}  // namespace nibble::quantize
