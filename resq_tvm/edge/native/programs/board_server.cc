// resq-board-server: a TVM RPC server for boards without Python. It offers itself at a tracker and
// serves one session at a time, each in a process of its own: what crashes there ends the session
// and not the server.
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/tvm_ffi.h>

#include <chrono>
#include <cstdio>
#include <optional>
#include <sstream>
#include <string>

#include "server_options.hpp"
#include "sockets.hpp"
#include "tracker.hpp"
#include "work_folder.hpp"

namespace resq::board {
namespace {

constexpr std::int32_t kMagic = 0xFF271;      // of RPC connections
constexpr std::int32_t kMismatch = 0xFF271 + 2;
constexpr int kHandshakeS = 5;                // a client that is silent for so long is dropped
constexpr int kTrackerMs = 2000;              // between questions to the tracker, and attempts
constexpr int kGraceS = 5;                    // a session ends so long after its client has gone
constexpr int kUnusedS = 8;                   // a key that was given away so long ago is void

void log(const std::string& text) {
  std::fprintf(stderr, "resq-board-server: %s\n", text.c_str());
}

// Signals as bytes in a pipe, so that one poll() waits for them and for connections.
int signal_pipe[2];

void on_signal(int number) {
  const int kept = errno;
  const char byte = static_cast<char>(number);
  [[maybe_unused]] const ssize_t written = write(signal_pipe[1], &byte, 1);
  errno = kept;
}

void catch_signals() {
  if (pipe2(signal_pipe, O_CLOEXEC | O_NONBLOCK) != 0) throw std::runtime_error("no pipe");
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  for (int number : {SIGTERM, SIGINT, SIGCHLD}) sigaction(number, &action, nullptr);
  signal(SIGPIPE, SIG_IGN);  // a client that has gone is an error of sending
}

// What a session's process does: serve until the client leaves.
[[noreturn]] void serve(const Socket& client, const std::string& folder) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // not without the server
  for (int number : {SIGTERM, SIGINT, SIGCHLD}) signal(number, SIG_DFL);
  int code = 0;
  try {
    if (chdir(folder.c_str()) != 0) throw std::runtime_error("the folder has gone");
    const auto inside = [folder](const ffi::String& name) {
      return ffi::String(WorkFolder::inside(folder, name));
    };
    const auto load = [folder](const ffi::String& name) {
      return ffi::Module::LoadFromFile(WorkFolder::inside(folder, name));
    };
    ffi::Function::SetGlobal("tvm.rpc.server.workpath", ffi::Function::FromTyped(inside), true);
    ffi::Function::SetGlobal("tvm.rpc.server.load_module", ffi::Function::FromTyped(load), true);
    ffi::Function::GetGlobalRequired("rpc.ServerLoop")(client.descriptor());
  } catch (const std::exception& error) {
    std::istringstream text(error.what());
    std::string line;
    std::getline(text, line);
    log("session failed: " + line);
    code = 1;
  }
  _exit(code);
}

using Clock = std::chrono::steady_clock;

struct Session {
  Socket client;
  WorkFolder folder;
  pid_t process = -1;
  std::optional<Clock::time_point> deadline;
  double limit_s = 0;
  bool left = false;  // the client has gone

  Session(Socket taken, const std::string& work) : client(std::move(taken)), folder(work) {}
};

class Server {
 public:
  explicit Server(Options options)
      : options_(std::move(options)), listener_(listen_on(options_.host, options_.port)) {
    options_.port = port_of(listener_);
    log("listening on " + options_.host + ":" + std::to_string(options_.port));
  }

  // Returns when a signal asks for the end.
  void run() {
    while (!stop_) {
      if (!session_) attend_tracker();
      const bool attends = session_ && !session_->left;
      pollfd watched[] = {{signal_pipe[0], POLLIN, 0},
                          {session_ ? -1 : listener_.descriptor(), POLLIN, 0},
                          {attends ? session_->client.descriptor() : -1, POLLRDHUP, 0}};
      poll(watched, 3, wait_ms());
      if (watched[2].revents != 0) client_left();
      read_signals();
      if (watched[1].revents & POLLIN && !session_ && !stop_) welcome();
      if (session_ && session_->deadline && Clock::now() >= *session_->deadline) expire();
    }
    if (session_) end_session(SIGKILL);
    log("stopped");
  }

 private:
  int wait_ms() const {
    if (session_) {
      if (!session_->deadline) return -1;
      const auto left = *session_->deadline - Clock::now();
      const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(left).count();
      return static_cast<int>(std::max<long long>(ms + 1, 0));
    }
    return options_.tracker_host.empty() ? -1 : kTrackerMs;
  }

  void read_signals() {
    for (char byte; read(signal_pipe[0], &byte, 1) == 1;) {
      if (byte != SIGCHLD) stop_ = true;
    }
    if (session_) end_session(0);
  }

  // Keeps the board on offer at the tracker.
  void attend_tracker() {
    if (options_.tracker_host.empty()) {
      match_ = options_.key;
      return;
    }
    try {
      if (!tracker_) {
        tracker_.emplace(options_.tracker_host, options_.tracker_port, options_.key, options_.port,
                         options_.address);
        match_.clear();
        problem_.clear();
        log("registered at " + options_.tracker_host + ":" +
            std::to_string(options_.tracker_port) + " as " + options_.key);
      }
      const Clock::time_point now = Clock::now();
      if (match_.empty() || now - pending_ > std::chrono::seconds(kUnusedS)) {
        match_ = tracker_->offer();
        pending_ = now;
      } else if (tracker_->is_pending(match_)) {
        pending_ = now;
      }
    } catch (const ConnectionError& error) {
      tracker_.reset();
      if (problem_ != error.what()) log(std::string("no tracker: ") + error.what());
      problem_ = error.what();  // told once
    }
  }

  // Takes a connection whose client knows the key.
  void welcome() {
    Socket client(accept4(listener_.descriptor(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!client.is_open()) return;
    try {
      client.limit(kHandshakeS);
      if (client.receive_int() != kMagic) throw ConnectionError("no RPC client");
      std::istringstream words(client.receive_text(4096));
      std::string key;
      words >> key;
      if (key != "client:" + match_) {
        client.send_int(kMismatch);
        throw ConnectionError("its key is not the one on offer");
      }
      client.send_int(kMagic);
      client.send_text("server:" + options_.key);
      client.limit(0);
      const int on = 1;
      setsockopt(client.descriptor(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
      begin_session(std::move(client), words);
    } catch (const std::exception& error) {
      log(std::string("connection refused: ") + error.what());
    }
  }

  void begin_session(Socket client, std::istringstream& words) {
    session_.emplace(std::move(client), options_.work);
    for (std::string word; words >> word;) {
      if (word.rfind("-timeout=", 0) == 0) session_->limit_s = std::atof(word.c_str() + 9);
    }
    if (session_->limit_s > 0) {
      session_->deadline = Clock::now() + std::chrono::milliseconds(
                                              static_cast<long long>(session_->limit_s * 1e3));
    }
    match_.clear();
    session_->process = fork();
    if (session_->process == 0) serve(session_->client, session_->folder.path());
    if (session_->process < 0) {
      session_.reset();
      throw std::runtime_error("no process can be made");
    }
    log("session begins, process " + std::to_string(session_->process));
  }

  // A session whose client has gone ends by itself, unless it hangs in what it was told to run.
  void client_left() {
    session_->left = true;
    const Clock::time_point end = Clock::now() + std::chrono::seconds(kGraceS);
    session_->deadline = std::min(session_->deadline.value_or(end), end);
  }

  void expire() {
    if (session_->left) {
      log("session hangs without a client");
      end_session(SIGKILL);
      return;
    }
    std::ostringstream text;
    text << "RPCSessionTimeoutError: Your " << session_->limit_s << "s session has expired, try "
         << "to increase the \"session_timeout\" value.";
    try {
      ffi::Function::GetGlobalRequired("rpc.ReturnException")(session_->client.descriptor(),
                                                              text.str());
    } catch (const std::exception&) {
      // The client has gone: nobody is left to be told.
    }
    log("session takes too long");
    end_session(SIGKILL);
  }

  // Clears up after the session's process if it has ended; a signal ends it.
  void end_session(int signal_number) {
    if (signal_number != 0) kill(session_->process, signal_number);
    int status = 0;
    if (waitpid(session_->process, &status, signal_number == 0 ? WNOHANG : 0) <= 0) return;
    log(WIFSIGNALED(status)
            ? "session ended by signal " + std::to_string(WTERMSIG(status))
            : "session ended with code " + std::to_string(WEXITSTATUS(status)));
    session_.reset();
  }

  Options options_;
  Socket listener_;
  std::optional<Tracker> tracker_;
  std::string match_;          // the key of the session on offer
  Clock::time_point pending_;  // when nobody had been given it
  std::string problem_;
  std::optional<Session> session_;
  bool stop_ = false;
};

}  // namespace
}  // namespace resq::board

int main(int count, char** words) {
  using namespace resq::board;
  if (count == 2 && (std::strcmp(words[1], "--help") == 0 || std::strcmp(words[1], "-h") == 0)) {
    std::fputs(kHelp, stdout);
    return 0;
  }
  try {
    const Options options = parse(count, words);
    if (!ffi::Function::GetGlobal("rpc.ServerLoop").has_value()) {
      throw std::runtime_error("libtvm_runtime.so is not linked, or has no RPC");
    }
    catch_signals();
    Server(options).run();
    return 0;
  } catch (const UsageError& error) {
    log(std::string("error: ") + error.what() + "; see resq-board-server --help");
    return 2;
  } catch (const std::exception& error) {
    log(std::string("error: ") + error.what());
    return 1;
  }
}
