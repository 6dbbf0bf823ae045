// Plays a script on one session: script ARTIFACT FRAMES OUTPUT PERIOD WORD...
// Words: run (the next frame of FRAMES), nan, short, force, skip, reset. Prints a line per word.
#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "resq.hpp"

int main(int count, char** words) {
  if (count < 5) return 2;
  const auto artifact = resq::Artifact::load(words[1]);
  std::ifstream frames(words[2], std::ios::binary);
  std::ofstream output(words[3], std::ios::binary);
  resq::SessionOptions options;
  options.period = std::stoi(words[4]);
  options.threads = 1;
  options.guard = false;
  resq::Session session(artifact, options);
  std::vector<float> frame(artifact->facts().inputs[0].size());
  for (int i = 5; i < count; ++i) {
    const std::string word = words[i];
    if (word == "force") session.force_keyframe();
    if (word == "skip") session.skip();
    if (word == "reset") session.reset();
    if (word == "force" || word == "skip" || word == "reset") continue;
    frames.read(reinterpret_cast<char*>(frame.data()),
                static_cast<std::streamsize>(frame.size() * sizeof(float)));
    if (word == "nan") frame[frame.size() / 2] = std::numeric_limits<float>::quiet_NaN();
    try {
      const auto& results = session.run({frame.data(), frame.size() - (word == "short")});
      for (const resq::Values& values : results) {
        output.write(reinterpret_cast<const char*>(values.data),
                     static_cast<std::streamsize>(values.size * sizeof(float)));
      }
      const resq::FrameInfo& last = session.last();
      std::printf("%s %s %lld\n", to_string(last.kind), to_string(last.reason),
                  static_cast<long long>(last.index));
    } catch (const resq::FrameError& error) {
      std::printf("FrameError %s\n", error.what());
    }
  }
  return output.good() ? 0 : 1;
}
