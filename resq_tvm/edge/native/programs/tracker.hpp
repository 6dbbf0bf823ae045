// A board's side of TVM's RPC tracker: JSON lists behind their length, one answer per request
// (tvm/rpc/tracker.py). The tracker gives clients the board's address and a key that is good for
// one session.
#ifndef RESQ_PROGRAMS_TRACKER_HPP_
#define RESQ_PROGRAMS_TRACKER_HPP_

#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>
#include <random>
#include <string>
#include <utility>

#include "sockets.hpp"

namespace resq::board {

namespace ffi = tvm::ffi;

class Tracker {
 public:
  // Connects and introduces the board; `address` is what clients shall use instead of the address
  // that the tracker sees ("": no other). Throws ConnectionError.
  Tracker(const std::string& host, int port, std::string key, int board_port, std::string address)
      : key_(std::move(key)), board_port_(board_port), address_(std::move(address)) {
    connection_ = connect_to(host, port, kLimitS);
    connection_.send_int(kMagic);
    if (connection_.receive_int() != kMagic) {
      throw ConnectionError(host + ":" + std::to_string(port) + " is not an RPC tracker");
    }
    const List place{custom_address(), std::int64_t{board_port_}};
    ffi::Map<ffi::Any, ffi::Any> facts;
    facts.Set(ffi::String("key"), ffi::String("server:" + key_));
    facts.Set(ffi::String("addr"), place);
    expect_success(List{std::int64_t{kUpdateInfo}, facts});
  }

  // Offers one session; returns the key with which its client will come.
  std::string offer() {
    std::random_device random;
    const std::uint64_t number = std::uint64_t{random()} << 32 | random();
    const std::string match = key_ + ":" + std::to_string(number);
    const List place{std::int64_t{board_port_}, ffi::String(match)};
    expect_success(List{std::int64_t{kPut}, ffi::String(key_), place, custom_address()});
    return match;
  }

  // Whether nobody has been given the key yet.
  bool is_pending(const std::string& match) {
    const ffi::Any answer = ask(List{std::int64_t{kPendingKeys}});
    const auto keys = answer.as<List>();
    if (!keys) throw ConnectionError("the tracker's answer is not a list");
    for (const ffi::Any& key : *keys) {
      const auto text = key.as<ffi::String>();
      if (text && *text == match) return true;
    }
    return false;
  }

 private:
  using List = ffi::json::Array;

  static constexpr std::int32_t kMagic = 0x2F271;
  static constexpr int kLimitS = 10;
  static constexpr std::int32_t kMostBytes = 1 << 20;
  enum Code { kSuccess = 0, kPut = 3, kUpdateInfo = 5, kPendingKeys = 7 };

  ffi::Any custom_address() const {
    return address_.empty() ? ffi::Any(nullptr) : ffi::Any(ffi::String(address_));
  }

  ffi::Any ask(const List& request) {
    connection_.send_text(ffi::json::Stringify(request));
    ffi::String problem;
    ffi::Any answer = ffi::json::Parse(connection_.receive_text(kMostBytes), &problem);
    if (!problem.empty()) throw ConnectionError("the tracker's answer is not JSON");
    return answer;
  }

  void expect_success(const List& request) {
    const auto code = ask(request).as<std::int64_t>();
    if (code != kSuccess) throw ConnectionError("the tracker refused");
  }

  std::string key_;
  int board_port_;
  std::string address_;
  Socket connection_;
};

}  // namespace resq::board

#endif  // RESQ_PROGRAMS_TRACKER_HPP_
