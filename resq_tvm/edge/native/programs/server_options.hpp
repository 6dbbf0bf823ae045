// The command line of resq-board-server.
#ifndef RESQ_PROGRAMS_SERVER_OPTIONS_HPP_
#define RESQ_PROGRAMS_SERVER_OPTIONS_HPP_

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace resq::board {

constexpr const char* kHelp =
    "usage: resq-board-server [options]\n"
    "\n"
    "Runs kernels and networks that TVM's RPC clients send. Whoever reaches the port can run any\n"
    "code here: use it in a network that you trust.\n"
    "\n"
    "  --host ADDRESS        listen there (127.0.0.1); 0.0.0.0 for every network of the board\n"
    "  --port N              listen there (9090); 0 takes a free one and tells which\n"
    "  --tracker HOST:PORT   offer the board there\n"
    "  --key KEY             the kind of board, as clients ask for it\n"
    "  --address ADDRESS     tell clients this address of the board, not the one that the tracker\n"
    "                        sees\n"
    "  --work DIR            make the folders of sessions there (/tmp)\n"
    "\n"
    "SIGTERM ends it, and a session with it.\n";

class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Options {
  std::string host = "127.0.0.1", tracker_host, key, address, work = "/tmp";
  int port = 9090, tracker_port = 0;
};

inline int parse_port(const std::string& option, const std::string& text, int least) {
  char* end = nullptr;
  const long value = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || value < least || value > 65535) {
    throw UsageError(option + " " + text + " is not a port");
  }
  return static_cast<int>(value);
}

inline Options parse(int count, char** words) {
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    if (i + 1 == count) throw UsageError(word + " needs a value, or is unknown");
    const std::string value = words[++i];
    if (word == "--host") {
      options.host = value;
    } else if (word == "--port") {
      options.port = parse_port(word, value, 0);
    } else if (word == "--tracker") {
      const std::size_t colon = value.rfind(':');
      if (colon == std::string::npos || colon == 0) {
        throw UsageError(word + " " + value + " is malformed; write HOST:PORT");
      }
      options.tracker_host = value.substr(0, colon);
      options.tracker_port = parse_port(word, value.substr(colon + 1), 1);
    } else if (word == "--key") {
      options.key = value;
    } else if (word == "--address") {
      options.address = value;
    } else if (word == "--work") {
      options.work = value;
    } else {
      throw UsageError("the option " + word + " is unknown");
    }
  }
  if (!options.tracker_host.empty() && options.key.empty()) {
    throw UsageError("a tracker needs the board's key; add --key");
  }
  if (options.key.find_first_of(" \t\n") != std::string::npos) {
    throw UsageError("the key '" + options.key + "' holds a blank");
  }
  return options;
}

}  // namespace resq::board

#endif  // RESQ_PROGRAMS_SERVER_OPTIONS_HPP_
