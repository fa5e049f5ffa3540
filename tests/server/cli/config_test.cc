// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/config.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/testing/temp_dir.h"

namespace nibble::server {
namespace {

using ::testing::HasSubstr;

ServeConfig Good() {
  ServeConfig config;
  config.model.model = "models/stories-llama";
  return config;
}

TEST(ServeConfigTest, DefaultsAreValid) {
  EXPECT_TRUE(Good().Validate().ok()) << Good().Validate();
}

TEST(ServeConfigTest, EveryViolationIsListedWithValueAndLimit) {
  ServeConfig config = Good();
  config.model.dtype = "float8";
  config.model.kv_cache_dtype = "fp8";
  config.model.quantization = "int3";
  config.model.head_quantization = "int2";
  config.model.threads = -1;
  config.port = 70000;
  config.max_num_batched_tokens = 10;  // below max_num_seqs
  const std::string message(config.Validate().message());
  EXPECT_THAT(message, HasSubstr("--kv-cache-dtype is 'fp8', want auto, float32, bfloat16, "
                                 "float16, int8"));
  EXPECT_THAT(message, HasSubstr("--dtype is 'float8', want auto, float32, bfloat16, float16"));
  EXPECT_THAT(message, HasSubstr("--quantization is 'int3', want none, w4a8, w8a8, w4a16"));
  EXPECT_THAT(message, HasSubstr("--head-quantization is 'int2', want auto, none, int8, int4"));
  EXPECT_THAT(message, HasSubstr("--threads is -1, want 0 to 1024"));
  EXPECT_THAT(message, HasSubstr("--port is 70000, want 0 to 65535"));
  EXPECT_THAT(message, HasSubstr("--max-num-batched-tokens is 10, want 64 to"));
  EXPECT_EQ(std::count(message.begin(), message.end(), '\n'), 6);
}

TEST(ServeConfigTest, BatchInvarianceIsOfOurKernelsAndOneAllReduce) {
  ServeConfig config = Good();
  config.model.batch_invariant = true;
  EXPECT_TRUE(config.Validate().ok()) << config.Validate();
  config.model.attention_backend = "flashinfer";
  config.parallel.tensor_parallel_size = 2;
  const std::string message(config.Validate().message());
  EXPECT_THAT(message, HasSubstr("--batch-invariant: --attention-backend flashinfer"));
  EXPECT_THAT(message, HasSubstr("--batch-invariant: --all-reduce auto"));
  config.model.attention_backend = "nibble";
  config.parallel.all_reduce.all_reduce = "int8";
  EXPECT_TRUE(config.Validate().ok()) << config.Validate();
}

TEST(ServeConfigTest, NotAllOfADeviceIsGiven) {
  ServeConfig config = Good();
  for (const double share : {0.0, 0.99, 1.0}) {
    config.model.gpu_memory_utilization = share;
    EXPECT_THAT(std::string(config.Validate().message()),
                HasSubstr("want more than 0 and at most 0.98"));
  }
  config.model.gpu_memory_utilization = 0.98;
  EXPECT_TRUE(config.Validate().ok()) << config.Validate();
}

TEST(ServeConfigTest, WhatIsOfDevicesIsRefusedOnTheCpu) {
  ServeConfig config = Good();
  config.model.gpu_memory_utilization = 0.5;
  config.model.enforce_eager = true;
  config.model.attention_backend = "nibble";
  EXPECT_TRUE(config.Validate().ok()) << config.Validate();  // auto: there may be a device
  config.model.device = "cpu";
  const std::string message(config.Validate().message());
  for (const char* name : {"--gpu-memory-utilization", "--enforce-eager", "--attention-backend"}) {
    EXPECT_THAT(message, HasSubstr(std::string(name) + " is of --device cuda, --device is cpu"));
  }
}

TEST(ServeConfigTest, TwoServersNeedTwoPorts) {
  ServeConfig config = Good();
  config.grpc_port = config.port;
  EXPECT_FALSE(config.Validate().ok());
  config.port = config.grpc_port = 0;  // any free ports
  EXPECT_TRUE(config.Validate().ok());
}

TEST(ServeConfigTest, EveryViolationOfRanksAndNodesIsListed) {
  ServeConfig config = Good();
  ParallelOptions& parallel = config.parallel;
  parallel.tensor_parallel_size = 65;
  parallel.rank_threads = -1;
  parallel.nnodes = 2;
  parallel.node_rank = 2;
  parallel.master_port = 0;
  parallel.all_reduce = {.all_reduce = "int7", .group_size = 48, .scale = "fp8"};
  parallel.rank_timeout_seconds = 0;
  parallel.group_timeout_seconds = 0;
  parallel.cluster_tls_cert = "cert.pem";
  const std::string message(config.Validate().message());
  EXPECT_THAT(message, HasSubstr("--tensor-parallel-size is 65, want 1 to 64"));
  EXPECT_THAT(message,
              HasSubstr("--tensor-parallel-size 65 are 65 ranks, want a multiple of --nnodes (2)"));
  EXPECT_THAT(message, HasSubstr("--rank-threads is -1, want 0 to 1024"));
  EXPECT_THAT(message, HasSubstr("--node-rank is 2, want 0 to 1"));
  EXPECT_THAT(message, HasSubstr("--master-addr is missing"));
  EXPECT_THAT(message, HasSubstr("--cluster-secret-file, NIBBLE_CLUSTER_SECRET"));
  EXPECT_THAT(message, HasSubstr("--master-port is 0, want 1 to 65535"));
  EXPECT_THAT(message, HasSubstr("--cluster-tls-key: want all three or none"));
  EXPECT_THAT(message, HasSubstr("--all-reduce is 'int7', want auto, none, float32, bf16, int8"));
  EXPECT_THAT(message, HasSubstr("--all-reduce-group-size is 48, want 32, 64, 128"));
  EXPECT_THAT(message, HasSubstr("--all-reduce-scale is 'fp8', want bf16, log2"));
  EXPECT_THAT(message, HasSubstr("--rank-timeout is 0, want 1 to 3600"));
  EXPECT_THAT(message, HasSubstr("--group-timeout is 0, want 1 to 86400"));
  EXPECT_EQ(std::count(message.begin(), message.end(), '\n'), 12);
}

TEST(ServeConfigTest, NodesAuthenticateThemselves) {
  ServeConfig config = Good();
  config.parallel.tensor_parallel_size = 4;
  config.parallel.nnodes = 2;
  config.parallel.master_addr = "10.77.0.1";
  EXPECT_FALSE(config.Validate().ok());
  config.parallel.cluster_secret = "secret";
  EXPECT_TRUE(config.Validate().ok()) << config.Validate();
  EXPECT_EQ(config.parallel.ranks_per_node(), 2);
}

TEST(ServeConfigTest, SeveralRanksHaveRankThreads) {
  ServeConfig config = Good();
  config.model.threads = 2;
  EXPECT_TRUE(config.Validate().ok());
  config.parallel.tensor_parallel_size = 2;
  EXPECT_THAT(std::string(config.Validate().message()), HasSubstr("--rank-threads"));
}

TEST(ServeConfigTest, StagesOfOneRankSumNothing) {
  ServeConfig config{.model = {.model = "some/dir"}};
  config.parallel.pipeline_parallel_size = 4;
  for (const char* all_reduce : {"auto", "none"}) {
    config.parallel.all_reduce.all_reduce = all_reduce;
    EXPECT_TRUE(config.Validate().ok()) << config.Validate();
  }
  config.parallel.all_reduce.all_reduce = "int8";
  EXPECT_THAT(std::string(config.Validate().message()),
              HasSubstr("--tensor-parallel-size is 1, which leaves nothing to sum"));
}

TEST(ServeConfigTest, ANodeOfHowMany) {
  ServeConfig config{.model = {.model = "some/dir"}};
  config.parallel.node_rank = 1;
  EXPECT_EQ(std::string(config.Validate().message()), "--node-rank is 1: --nnodes is missing");
  config.parallel.nnodes = 2;
  EXPECT_THAT(std::string(config.Validate().message()),
              HasSubstr("--pipeline-parallel-size 1 x --tensor-parallel-size 1 are 1 rank, want a "
                        "multiple of --nnodes (2)"));
}

TEST(ServeConfigTest, OptionsThatNothingWouldUseAreRefused) {
  ServeConfig config = Good();
  config.parallel.rank_threads = 2;
  config.parallel.all_reduce.all_reduce = "int4";
  config.parallel.cluster_tls_server_name = "node0";
  config.parallel.master_addr = "10.77.0.1";
  EXPECT_THAT(std::string(config.Validate().message()), HasSubstr("--rank-threads is 2"));
  EXPECT_THAT(std::string(config.Validate().message()),
              HasSubstr("--master-addr needs --nnodes 2 or more"));
  config.parallel.master_addr = "";
  EXPECT_THAT(std::string(config.Validate().message()),
              HasSubstr("--cluster-tls-server-name needs --cluster-tls-ca"));
  config.parallel.cluster_tls_server_name = "";
  EXPECT_THAT(std::string(config.Validate().message()),
              HasSubstr("--tensor-parallel-size is 1, which leaves nothing to sum"));
  config.parallel.tensor_parallel_size = 2;
  EXPECT_TRUE(config.Validate().ok()) << config.Validate();
  config.parallel.all_reduce = {.all_reduce = "none", .spikes = true};
  EXPECT_THAT(std::string(config.Validate().message()),
              HasSubstr("--all-reduce none has no groups"));
  config.parallel.all_reduce.all_reduce = "auto";
  EXPECT_TRUE(config.Validate().ok()) << config.Validate();
}

TEST(ServeConfigTest, WhereRanksRun) {
  ServeConfig config = Good();
  for (const char* backend : {"auto", "mp", "uni"}) {
    config.parallel.distributed_executor_backend = backend;
    EXPECT_TRUE(config.Validate().ok()) << config.Validate();
  }
  config.parallel.tensor_parallel_size = 2;
  EXPECT_EQ(std::string(config.Validate().message()),
            "--distributed-executor-backend is uni, want auto or mp with 2 ranks: each is a "
            "process");
  config.parallel.distributed_executor_backend = "ray";
  EXPECT_EQ(std::string(config.Validate().message()),
            "--distributed-executor-backend is 'ray', want auto, mp, uni");
}

TEST(ServeConfigTest, StagesAreRanksToo) {
  ServeConfig config = Good();
  config.parallel.pipeline_parallel_size = 2;
  config.parallel.rank_threads = 2;
  EXPECT_TRUE(config.Validate().ok()) << config.Validate();
  EXPECT_EQ(config.parallel.world_size(), 2);
  config.parallel.nnodes = 2;
  config.parallel.master_addr = "10.77.0.1";
  config.parallel.cluster_secret = "secret";
  config.parallel.tensor_parallel_size = 3;
  EXPECT_TRUE(config.Validate().ok()) << config.Validate();
  EXPECT_EQ(config.parallel.ranks_per_node(), 3);
  config.parallel.nnodes = 4;
  EXPECT_THAT(std::string(config.Validate().message()),
              HasSubstr("--pipeline-parallel-size 2 x --tensor-parallel-size 3 are 6 ranks, want a "
                        "multiple of --nnodes (4)"));
}

TEST(ServeConfigTest, TooManyRanksAreRefused) {
  ServeConfig config = Good();
  config.parallel.tensor_parallel_size = 64;
  config.parallel.pipeline_parallel_size = 64;
  EXPECT_THAT(std::string(config.Validate().message()), HasSubstr("4096 ranks, want 1024"));
  config.parallel.tensor_parallel_size = INT32_MAX;
  config.parallel.pipeline_parallel_size = INT32_MAX;  // no overflow
  EXPECT_THAT(std::string(config.Validate().message()),
              HasSubstr("--pipeline-parallel-size is 2147483647, want 1 to 64"));
}

TEST(ServeConfigTest, ContradictionsOfExpertOptionsAreListed) {
  ServeConfig config = Good();
  ExpertOptions& experts = config.parallel.experts;
  config.parallel.tensor_parallel_size = 4;
  experts.enable_expert_parallel = true;
  EXPECT_TRUE(config.Validate().ok()) << config.Validate();
  experts.expert_parallel_size = 4;  // says the same
  EXPECT_TRUE(config.Validate().ok()) << config.Validate();
  experts.expert_parallel_size = 3;
  experts.num_redundant_experts = 2;
  experts.max_expert_series = -1;
  std::string message(config.Validate().message());
  EXPECT_THAT(message, HasSubstr("--enable-expert-parallel means --expert-parallel-size 4 "
                                 "(--tensor-parallel-size), given is --expert-parallel-size 3"));
  EXPECT_THAT(message, HasSubstr("--expert-parallel-size is 3, want a divisor of "
                                 "--tensor-parallel-size (4)"));
  EXPECT_THAT(message, HasSubstr("--num-redundant-experts is 2: --expert-load FILE is missing"));
  EXPECT_THAT(message, HasSubstr("--max-expert-series is -1, want 0 to"));
  experts = {.enable_expert_parallel = true};
  config.parallel.tensor_parallel_size = 1;
  EXPECT_THAT(std::string(config.Validate().message()),
              HasSubstr("--enable-expert-parallel needs --tensor-parallel-size 2 or more"));
  experts = {.check_routing = true};
  EXPECT_THAT(std::string(config.Validate().message()),
              HasSubstr("--check-routing needs --tensor-parallel-size 2 or more"));
}

TEST(ServeConfigTest, TheLoadThatDecidesIsNotTheOneThatIsRecorded) {
  const testing::TempDir folder;
  const std::string path = folder.path() + "/load.json";
  ServeConfig config = Good();
  ExpertOptions& experts = config.parallel.experts;
  experts = {.expert_load = path, .record_expert_load = folder.path() + "/other.json"};
  EXPECT_TRUE(config.Validate().ok()) << config.Validate();
  experts.record_expert_load = folder.path() + "/./load.json";  // neither is there
  EXPECT_THAT(std::string(config.Validate().message()),
              HasSubstr("--record-expert-load " + folder.path() + "/./load.json is the file of "));
  std::ofstream(path) << "{}";
  std::filesystem::create_hard_link(path, folder.path() + "/linked.json");
  experts.record_expert_load = folder.path() + "/linked.json";
  EXPECT_FALSE(config.Validate().ok());
  experts.record_expert_load = folder.path() + "/other.json";
  EXPECT_TRUE(config.Validate().ok()) << config.Validate();
}

TEST(ServeConfigTest, LimitsThemselvesAreAllowed) {
  ServeConfig config = Good();
  config.grpc_port = -1;
  config.max_num_seqs = 4096;
  config.max_num_batched_tokens = 4096;
  config.max_body_bytes = 1024;
  EXPECT_TRUE(config.Validate().ok()) << config.Validate();
}

}  // namespace
}  // namespace nibble::server
