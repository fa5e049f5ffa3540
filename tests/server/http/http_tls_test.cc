// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// TLS of the HTTP server over real sockets.

#include <filesystem>

#include "gmock/gmock.h"

#include "server/tls/tls_source.h"
#include "tests/server/http/http_server_fixture.h"
#include "tests/server/http/tls_client.h"
#include "tests/testing/tls_files.h"

namespace nibble::server {
namespace {

using nibble::testing::Replace;
using ::testing::HasSubstr;
using testing::RawClient;
using ::testing::StartsWith;
using testing::TlsClient;

class HttpTlsTest : public HttpServerTest {
 protected:
  void StartTls(ClientCertificates clients = ClientCertificates::kNone,
                HttpServerConfig config = {}) {
    auto source = TlsSource::Create(
        {.cert_file = files_.cert(),
         .key_file = files_.key(),
         .ca_file = clients == ClientCertificates::kNone
                        ? std::string()
                        : Replace(files_.folder, "clients.pem", files_.authority.cert()),
         .clients = clients},
        std::chrono::milliseconds(5));
    ASSERT_TRUE(source.ok()) << source.status();
    source_ = std::move(source).value();
    config.tls = source_;
    StartServer(config);
  }
  testing::TlsClientOptions Trusting() const { return {.ca = files_.authority.cert()}; }
  testing::TlsClientOptions Showing(const comm::TestAuthority& signer) const {
    return {.ca = files_.authority.cert(), .own = signer.Sign()};
  }
  std::string AskHello(const testing::TlsClientOptions& options) {
    TlsClient client(port(), options);
    return client.Ask(kHello, "hello");
  }
  void WaitForGeneration(uint64_t generation) {
    EXPECT_TRUE(testing::Eventually([&] { return source_->current().generation >= generation; }));
  }

  nibble::testing::TlsFiles files_;
  std::shared_ptr<TlsSource> source_;
};

TEST_F(HttpTlsTest, AnswersAndKeepsTheConnection) {
  StartTls();
  TlsClient client(port(), Trusting());
  ASSERT_TRUE(client.connected());
  EXPECT_EQ(client.Version(), "TLSv1.3");
  EXPECT_EQ(client.Alpn(), "http/1.1");
  for (int i = 0; i < 3; ++i) {
    EXPECT_THAT(client.Ask(kHello, "hello"), StartsWith("HTTP/1.1 200 OK\r\n"));
  }
}

TEST_F(HttpTlsTest, SpeaksTls12AndNothingOlder) {
  StartTls();
  auto options = Trusting();
  options.max_version = TLS1_2_VERSION;
  EXPECT_THAT(AskHello(options), HasSubstr("200 OK"));
  options.max_version = TLS1_1_VERSION;
  EXPECT_FALSE(TlsClient(port(), options).connected());
  options = Trusting();
  options.alpn = "h2";
  EXPECT_FALSE(TlsClient(port(), options).connected());
}

TEST_F(HttpTlsTest, LargeBodiesGoBothWays) {
  StartTls();
  const std::string body(size_t{5} << 20, 'x');
  TlsClient client(port(), Trusting());
  std::thread sender([&] {
    client.Send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: " +
                std::to_string(body.size() + 3) + "\r\n\r\n");
    for (size_t at = 0; at < body.size(); at += 1 << 20) {
      client.Send(std::string_view(body).substr(at, 1 << 20));
    }
    client.Send("end");
  });
  sender.join();
  EXPECT_GT(client.ReadUntil("xend").size(), body.size());
}

TEST_F(HttpTlsTest, StreamsAndPipelines) {
  StartTls();
  TlsClient client(port(), Trusting());
  client.Send(std::string(kHold) + std::string(kHello));
  const auto held = TakeHeld();
  held->StartStream(200, "text/plain");
  held->Write("first");
  EXPECT_THAT(client.ReadUntil("first\r\n"), HasSubstr("chunked"));
  held->Write("second");
  held->EndStream();
  EXPECT_THAT(client.ReadUntil("0\r\n\r\n"), HasSubstr("second"));
  EXPECT_THAT(client.ReadUntil("hello"), HasSubstr("200 OK"));  // what was sent ahead
}

TEST_F(HttpTlsTest, NoticesAClientThatLeaves) {
  StartTls();
  std::atomic<bool> gone{false};
  std::shared_ptr<HttpResponder> held;
  {
    TlsClient client(port(), Trusting());
    client.Send(kHold);
    held = TakeHeld();
    held->OnDisconnect([&] { gone.store(true); });
  }
  EXPECT_TRUE(testing::Eventually([&] { return gone.load(); }));
}

TEST_F(HttpTlsTest, WhoeverSpeaksNoTlsIsToldOrCutOff) {
  StartTls();
  TlsClient other(port(), Trusting());
  EXPECT_THAT(Ask(kHello), StartsWith("HTTP/1.1 400"));
  RawClient garbage(port());
  garbage.Send(std::string(300, '\x7f'));
  EXPECT_TRUE(garbage.AtEnd());
  RawClient leaver(port());
  leaver.Send("\x16\x03\x01");
  leaver.Close();
  EXPECT_THAT(other.Ask(kHello, "hello"), HasSubstr("200 OK"));
  EXPECT_TRUE(testing::Eventually([&] { return server_->num_connections() == 1; }));
}

TEST_F(HttpTlsTest, HandshakesEndInTime) {
  StartTls(ClientCertificates::kNone, {.handshake_timeout_seconds = 1});
  RawClient silent(port());
  RawClient slow(port());
  slow.Send("\x16\x03\x01");
  EXPECT_TRUE(silent.AtEnd());
  EXPECT_TRUE(slow.AtEnd());
}

TEST_F(HttpTlsTest, CrowdsOfHandshakesLockNobodyOut) {
  StartTls(ClientCertificates::kNone,
           {.num_threads = 1, .handshake_timeout_seconds = 600, .max_handshakes = 2});
  std::vector<std::unique_ptr<RawClient>> silent;
  for (int i = 0; i < 8; ++i) silent.push_back(std::make_unique<RawClient>(port()));
  ASSERT_TRUE(testing::Eventually([&] { return server_->num_connections() == 8; }));
  EXPECT_THAT(AskHello(Trusting()), HasSubstr("200 OK"));
  silent[0]->Send("\x16\x03\x01");
  ASSERT_TRUE(testing::Eventually([&] { return server_->num_connections() == 8; }));
  silent[1]->Send("\x16\x03\x01");
  ::usleep(20'000);
  silent[2]->Send("\x16\x03\x01");
  EXPECT_TRUE(silent[0]->AtEnd() || silent[1]->AtEnd());  // one that was before the third
  EXPECT_THAT(AskHello(Trusting()), HasSubstr("200 OK"));
}

TEST_F(HttpTlsTest, NewKeysAreTakenNowAndThen) {
  StartTls();
  TlsClient client(port(), Trusting());
  for (int i = 0; i < 3; ++i) {
    client.ChangeKeys(10);
    EXPECT_THAT(client.Ask(kHello, "hello"), HasSubstr("200 OK"));
  }
  client.ChangeKeys(200);
  EXPECT_EQ(client.Ask(kHello, "hello"), "");
}

TEST_F(HttpTlsTest, AnAnswerIsWholeAlsoForWhoEndsWithoutAGoodbye) {
  StartTls();
  TlsClient client(port(), Trusting());
  client.Send(kHold);
  const std::string body(size_t{16} << 20, 'x');  // more than the kernel takes
  TakeHeld()->Send(200, "text/plain", body + "end");
  EXPECT_THAT(client.ReadUntil("xxxx"), HasSubstr("200 OK"));
  client.HalfClose();
  ::usleep(50'000);
  EXPECT_GT(client.ReadUntil("xend").size(), size_t{15} << 20);
}

TEST_F(HttpTlsTest, ClientsShowCertificatesWhereTheyMust) {
  const comm::TestAuthority stranger;
  StartTls(ClientCertificates::kRequired);
  EXPECT_EQ(AskHello(Trusting()), "");
  EXPECT_EQ(AskHello(Showing(stranger)), "");
  EXPECT_THAT(AskHello(Showing(files_.authority)), HasSubstr("200 OK"));
}

TEST_F(HttpTlsTest, ClientsMayShowCertificates) {
  const comm::TestAuthority stranger;
  StartTls(ClientCertificates::kOptional);
  EXPECT_THAT(AskHello(Trusting()), HasSubstr("200 OK"));
  EXPECT_EQ(AskHello(Showing(stranger)), "");
  EXPECT_THAT(AskHello(Showing(files_.authority)), HasSubstr("200 OK"));
}

TEST_F(HttpTlsTest, NewFilesAreForNewConnections) {
  StartTls();
  TlsClient before(port(), Trusting());
  files_.Renew();
  WaitForGeneration(2);
  TlsClient after(port(), Trusting());
  ASSERT_TRUE(after.connected());
  EXPECT_NE(before.Serial(), after.Serial());
  EXPECT_THAT(before.Ask(kHello, "hello"), HasSubstr("200 OK"));
}

TEST_F(HttpTlsTest, FilesBehindASymbolicLinkMayBeSwapped) {
  // As Kubernetes lays secrets out: key.pem -> ..data/key.pem, ..data -> ..2026
  namespace fs = std::filesystem;
  const auto lay = [&](const std::string& version) {
    fs::create_directory(files_.folder.File(version));
    const comm::Certificate made = files_.authority.Sign();
    files_.folder.Write(version + "/cert.pem", made.cert);
    files_.folder.Write(version + "/key.pem", made.key);
    fs::create_directory_symlink(version, files_.folder.File("..new"));
    fs::rename(files_.folder.File("..new"), files_.folder.File("..data"));
  };
  lay("..1");
  for (const char* name : {"cert.pem", "key.pem"}) {
    fs::remove(files_.folder.File(name));
    fs::create_symlink(std::string("..data/") + name, files_.folder.File(name));
  }
  StartTls();
  lay("..2");
  WaitForGeneration(2);
  EXPECT_THAT(AskHello(Trusting()), HasSubstr("200 OK"));
}

TEST_F(HttpTlsTest, BadNewFilesLeaveTheOldOnesInUse) {
  StartTls();
  const std::string before = TlsClient(port(), Trusting()).Serial();
  Replace(files_.folder, "cert.pem", "no certificate");
  // The watch has looked at it when it has seen the next change too.
  ::usleep(100'000);
  Replace(files_.folder, "cert.pem", files_.authority.Sign().cert);  // not the key's
  ::usleep(100'000);
  EXPECT_EQ(source_->current().generation, 1U);
  EXPECT_EQ(TlsClient(port(), Trusting()).Serial(), before);
  files_.Renew();
  WaitForGeneration(2);
  EXPECT_NE(TlsClient(port(), Trusting()).Serial(), before);
}

TEST(TlsMaterial, NamesWhatIsWrongWithAFile) {
  const nibble::testing::TlsFiles files;
  const TlsOptions good = {.cert_file = files.cert(), .key_file = files.key()};
  EXPECT_TRUE(ReadTlsMaterial(good).ok());
  const auto expect = [](TlsOptions options, const std::string& words) {
    const auto material = ReadTlsMaterial(options);
    ASSERT_FALSE(material.ok());
    EXPECT_THAT(std::string(material.status().message()), HasSubstr(words));
  };
  TlsOptions options = good;
  options.cert_file = files.folder.File("none.pem");
  expect(options, "none.pem");
  options.cert_file = files.key();
  expect(options, "no PEM certificates");
  options = good;
  options.key_file = files.cert();
  expect(options, "no PEM key");
  options.key_file = Replace(files.folder, "other.pem", files.authority.Sign().key);
  expect(options, "is not the key of");
  options = good;
  options.clients = ClientCertificates::kRequired;
  options.ca_file = files.key();
  expect(options, "--ssl-ca-certs");
}

}  // namespace
}  // namespace nibble::server
