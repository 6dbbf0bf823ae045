// TCP sockets that close themselves, with time limits on every transfer.
#ifndef RESQ_PROGRAMS_SOCKETS_HPP_
#define RESQ_PROGRAMS_SOCKETS_HPP_

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

namespace resq::board {

// A peer is gone, silent or not what it should be.
class ConnectionError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Socket {
 public:
  Socket() = default;
  explicit Socket(int descriptor) : descriptor_(descriptor) {}
  Socket(Socket&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  ~Socket() { close(); }

  void close() {
    if (descriptor_ >= 0) ::close(descriptor_);
    descriptor_ = -1;
  }

  bool is_open() const { return descriptor_ >= 0; }
  int descriptor() const { return descriptor_; }

  // Limits every transfer from now on; 0 waits for ever.
  void limit(int seconds) const {
    const timeval time{seconds, 0};
    setsockopt(descriptor_, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof(time));
    setsockopt(descriptor_, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof(time));
  }

  void send(const std::string& bytes) const {
    for (std::size_t done = 0; done < bytes.size();) {
      const ssize_t n =
          ::send(descriptor_, bytes.data() + done, bytes.size() - done, MSG_NOSIGNAL);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) throw ConnectionError(std::string("sending failed: ") + std::strerror(errno));
      done += static_cast<std::size_t>(n);
    }
  }

  std::string receive(std::size_t size) const {
    std::string bytes(size, '\0');
    for (std::size_t done = 0; done < size;) {
      const ssize_t n = ::recv(descriptor_, &bytes[done], size - done, 0);
      if (n < 0 && errno == EINTR) continue;
      if (n == 0) throw ConnectionError("the peer closed the connection");
      if (n < 0) throw ConnectionError(std::string("receiving failed: ") + std::strerror(errno));
      done += static_cast<std::size_t>(n);
    }
    return bytes;
  }

  // Numbers on the wire are little-endian, as this processor's.
  void send_int(std::int32_t value) const {
    send(std::string(reinterpret_cast<const char*>(&value), sizeof(value)));
  }

  std::int32_t receive_int() const {
    std::int32_t value;
    std::memcpy(&value, receive(sizeof(value)).data(), sizeof(value));
    return value;
  }

  // Receives text behind its length.
  std::string receive_text(std::int32_t most) const {
    const std::int32_t length = receive_int();
    if (length < 0 || length > most) {
      throw ConnectionError("a message of " + std::to_string(length) + " bytes is refused");
    }
    return receive(static_cast<std::size_t>(length));
  }

  void send_text(const std::string& text) const {
    send_int(static_cast<std::int32_t>(text.size()));
    send(text);
  }

 private:
  int descriptor_ = -1;
};

using Addresses = std::unique_ptr<addrinfo, void (*)(addrinfo*)>;

inline Addresses resolve(const std::string& host, int port, bool passive) {
  addrinfo wanted{};
  wanted.ai_family = AF_UNSPEC;
  wanted.ai_socktype = SOCK_STREAM;
  wanted.ai_flags = passive ? AI_PASSIVE : 0;
  addrinfo* found = nullptr;
  const int code = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &wanted, &found);
  if (code != 0) throw ConnectionError("host " + host + " is unknown: " + gai_strerror(code));
  return Addresses(found, freeaddrinfo);
}

inline Socket connect_to(const std::string& host, int port, int limit_s) {
  const Addresses addresses = resolve(host, port, false);
  std::string reason = "no address";
  for (const addrinfo* a = addresses.get(); a != nullptr; a = a->ai_next) {
    Socket made(::socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol));
    if (!made.is_open()) continue;
    made.limit(limit_s);
    if (::connect(made.descriptor(), a->ai_addr, a->ai_addrlen) == 0) return made;
    reason = std::strerror(errno);
  }
  throw ConnectionError(host + ":" + std::to_string(port) + " does not answer: " + reason);
}

inline Socket listen_on(const std::string& host, int port) {
  const Addresses addresses = resolve(host, port, true);
  std::string reason = "no address";
  for (const addrinfo* a = addresses.get(); a != nullptr; a = a->ai_next) {
    Socket made(::socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol));
    if (!made.is_open()) continue;
    const int on = 1;
    setsockopt(made.descriptor(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (::bind(made.descriptor(), a->ai_addr, a->ai_addrlen) == 0 &&
        ::listen(made.descriptor(), 4) == 0) {
      return made;
    }
    reason = std::strerror(errno);
  }
  throw ConnectionError("cannot listen on " + host + ":" + std::to_string(port) + ": " + reason);
}

// Returns the port that a listening socket got.
inline int port_of(const Socket& socket) {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  if (getsockname(socket.descriptor(), reinterpret_cast<sockaddr*>(&address), &size) != 0) return 0;
  if (address.ss_family == AF_INET6) {
    return ntohs(reinterpret_cast<const sockaddr_in6&>(address).sin6_port);
  }
  return ntohs(reinterpret_cast<const sockaddr_in&>(address).sin_port);
}

}  // namespace resq::board

#endif  // RESQ_PROGRAMS_SOCKETS_HPP_
