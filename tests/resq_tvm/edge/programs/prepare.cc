// Prepares the pictures of standard input: prepare ARTIFACT < PICTURES > VALUES
#include <cstdint>
#include <cstdio>
#include <vector>

#include "resq.hpp"

int main(int, char** words) {
  resq::Preprocessor prepare(*resq::Artifact::load(words[1]));
  std::vector<std::uint8_t> picture(prepare.picture_bytes());
  while (std::fread(picture.data(), 1, picture.size(), stdin) == picture.size()) {
    const resq::Values values = prepare(picture.data());
    std::fwrite(values.data, sizeof(float), values.size, stdout);
  }
  return std::fclose(stdout);
}
