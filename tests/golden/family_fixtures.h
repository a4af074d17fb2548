/* tests/golden/family_fixtures.h - the fixtures of all families but Mixtral: what is listed here is tested. */
#ifndef TESTS_GOLDEN_FAMILY_FIXTURES_H
#define TESTS_GOLDEN_FAMILY_FIXTURES_H

static const char *const family_fixtures[] = {
    "olmoe-base-bf16",
    "olmoe-clip-f32",
    "olmoe-tied-f16",
    "qwen2_moe-base-bf16",
    "qwen2_moe-dense-f32",
    "qwen2_moe-dynamic-f16",
    "qwen2_moe-window-bf16",
    "qwen3_moe-base-bf16",
    "qwen3_moe-dense-f32",
    "qwen3_moe-window-f16",
    "granitemoe-base-bf16",
    "granitemoe-tied-f16",
    "granitemoe-plain-f32",
    "granitemoeshared-base-f16",
    "granitemoeshared-none-bf16",
    "granitemoeshared-odd-f32",
    "phimoe-base-bf16",
    "phimoe-short-f16",
    "phimoe-long-f32",
    "deepseek_v2-lite-bf16",
    "deepseek_v2-groups-f32",
    "deepseek_v2-odd-f16",
    "deepseek_v2-freq-bf16",
    "deepseek_v3-base-bf16",
    "deepseek_v3-whole-f32",
    "deepseek_v3-odd-f16",
    "deepseek_v3-fp8-heads",
    "deepseek_v3-fp8-cut",
    "gpt_oss-base-bf16",
    "gpt_oss-clamped-f32",
    "gpt_oss-odd-f16",
    "gpt_oss-mxfp4",
};
enum { N_FAMILY_FIXTURES = sizeof family_fixtures / sizeof family_fixtures[0] };

#endif
