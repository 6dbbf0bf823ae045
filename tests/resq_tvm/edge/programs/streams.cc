// Streams that share an artifact, each in a thread of its own and all at once:
// streams ARTIFACT (FRAMES OUTPUT PERIOD)...
#include <atomic>
#include <cstdio>
#include <exception>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "resq.hpp"

int main(int count, char** words) {
  const int streams = (count - 2) / 3;
  const auto artifact = resq::Artifact::load(words[1]);
  std::atomic<int> waiting{streams}, failed{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < streams; ++i) {
    threads.emplace_back([&, i] {
      char** own = words + 2 + 3 * i;
      std::ifstream frames(own[0], std::ios::binary);
      std::ofstream output(own[1], std::ios::binary);
      std::vector<float> frame(artifact->facts().inputs[0].size());
      const auto bytes = static_cast<std::streamsize>(frame.size() * sizeof(float));
      --waiting;
      while (waiting > 0) std::this_thread::yield();
      try {
        resq::SessionOptions options;
        options.period = std::stoi(own[2]);
        options.threads = 1;
        options.guard = false;
        resq::Session session(artifact, options);
        while (frames.read(reinterpret_cast<char*>(frame.data()), bytes)) {
          for (const resq::Values& values : session.run({frame.data(), frame.size()})) {
            output.write(reinterpret_cast<const char*>(values.data),
                         static_cast<std::streamsize>(values.size * sizeof(float)));
          }
        }
      } catch (const std::exception& error) {
        std::fprintf(stderr, "stream %d: %s\n", i, error.what());
        ++failed;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return failed;
}
