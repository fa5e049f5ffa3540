// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A node that speaks as the test says.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"

#include "comm/cluster/handshake.h"
#include "nibble/v1/cluster.grpc.pb.h"

namespace nibble::comm {

class RawNode {
 public:
  RawNode(int port, std::string secret)
      : secret_(std::move(secret)),
        stub_(v1::Cluster::NewStub(grpc::CreateChannel("127.0.0.1:" + std::to_string(port),
                                                       grpc::InsecureChannelCredentials()))),
        stream_(stub_->Join(&context_)) {}

  void Write(const v1::NodeMessage& message) { stream_->Write(message); }
  void Hello(uint32_t protocol = kClusterProtocol, size_t nonce_bytes = kNonceBytes) {
    nonces_.node = std::string(nonce_bytes, 'n');
    v1::NodeMessage message;
    message.mutable_hello()->set_protocol(protocol);
    message.mutable_hello()->set_nonce(nonces_.node);
    Write(message);
  }
  v1::HeadMessage Read() {
    v1::HeadMessage message;
    stream_->Read(&message);
    return message;
  }
  // As node 1 of the fixture's cluster, but for what `change` says. Returns the proof, `proof` if
  // that is given.
  std::string Join(const std::function<void(v1::JoinRequest*)>& change = {},
                   const std::string& proof = "") {
    nonces_.head = Read().challenge().nonce();
    v1::NodeMessage message;
    v1::JoinRequest* join = message.mutable_join();
    join->set_node(1);
    join->set_num_nodes(2);
    join->set_ranks_per_node(2);
    join->set_version("1.2.3");
    join->set_model_fingerprint("model-a");
    join->set_options_fingerprint("options-a");
    join->set_bind_address("127.0.0.1");
    if (change) change(join);
    join->set_proof(proof.empty() ? ProofOf(Side::kNode, secret_, nonces_, join->node()) : proof);
    Write(message);
    return join->proof();
  }
  // Joins, and reads until the head wants ranks.
  void JoinWholly() {
    Hello();
    Join();
    const v1::HeadMessage welcome = Read();
    EXPECT_TRUE(CheckWelcome(welcome.welcome(), nonces_, secret_, 1).ok());
    EXPECT_TRUE(Read().has_start_ranks());
  }
  void Up(uint32_t rank) {
    v1::NodeMessage message;
    message.mutable_rank_up()->set_rank(rank);
    Write(message);
  }
  void Down(uint32_t rank, uint32_t reason) {
    v1::NodeMessage message;
    message.mutable_rank_down()->set_rank(rank);
    message.mutable_rank_down()->set_reason(reason);
    Write(message);
  }
  void FrameOf(uint32_t rank, const std::string& payload, uint64_t remaining = 0) {
    v1::NodeMessage message;
    message.mutable_frame()->set_rank(rank);
    message.mutable_frame()->set_payload(payload);
    message.mutable_frame()->set_remaining(remaining);
    Write(message);
  }
  void Cancel() { context_.TryCancel(); }
  // The status with which the head ends the call.
  grpc::Status End() {
    v1::HeadMessage message;
    while (stream_->Read(&message)) {
    }
    return stream_->Finish();
  }
  void ExpectEnd(grpc::StatusCode code, const std::string& text) {
    const grpc::Status status = End();
    EXPECT_EQ(status.error_code(), code) << status.error_message();
    EXPECT_THAT(status.error_message(), ::testing::HasSubstr(text));
  }

 private:
  const std::string secret_;
  Nonces nonces_;
  grpc::ClientContext context_;
  std::unique_ptr<v1::Cluster::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::NodeMessage, v1::HeadMessage>> stream_;
};

}  // namespace nibble::comm
