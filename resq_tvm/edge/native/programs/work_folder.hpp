// The folder of one RPC session: what a client sends lies there, and goes with the session.
#ifndef RESQ_PROGRAMS_WORK_FOLDER_HPP_
#define RESQ_PROGRAMS_WORK_FOLDER_HPP_

#include <ftw.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace resq::board {

class WorkFolder {
 public:
  // Makes a new folder inside another one. Throws std::runtime_error.
  explicit WorkFolder(const std::string& parent) : path_(parent + "/resq-board-XXXXXX") {
    if (mkdtemp(&path_[0]) == nullptr) {
      throw std::runtime_error("no folder can be made in " + parent + ": " + std::strerror(errno));
    }
  }

  ~WorkFolder() {
    const auto remove = [](const char* path, const struct stat*, int, struct FTW*) {
      std::remove(path);
      return 0;
    };
    nftw(path_.c_str(), remove, 16, FTW_DEPTH | FTW_PHYS);
  }

  WorkFolder(const WorkFolder&) = delete;
  WorkFolder& operator=(const WorkFolder&) = delete;

  const std::string& path() const { return path_; }

  // Returns the path of a file in the folder; throws std::runtime_error for names that lead out.
  static std::string inside(const std::string& folder, const std::string& name) {
    const std::string parts = "/" + name + "/";
    if (name.empty() || name[0] == '/' || parts.find("/../") != std::string::npos) {
      throw std::runtime_error("the file name '" + name + "' leads out of the session's folder");
    }
    return folder + "/" + name;
  }

 private:
  std::string path_;
};

}  // namespace resq::board

#endif  // RESQ_PROGRAMS_WORK_FOLDER_HPP_
