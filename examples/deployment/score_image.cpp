// Score binary PPM images (P6, 8 bits per channel) with an exported detector. This program needs ONNX Runtime and
// OpenSSL's libcrypto, but neither Python nor skpatchcore.
//
//   g++ -std=c++17 -O2 score_image.cpp -I INCLUDE -L LIB -lonnxruntime -lcrypto -o score_image
//   ./score_image parts.onnx 1.ppm 2.ppm
//
// Each image gets one line: score (bigger = more normal), decision (negative = anomalous), label (1 = normal,
// -1 = anomalous), p-value. The program prints the numbers with all digits that a float has.
#include <array>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <onnxruntime_cxx_api.h>
#include <openssl/sha.h>
#include <stdexcept>
#include <string>
#include <vector>

// Return the content of an exported file. Its last 88 bytes are the entry with the SHA-256 of all bytes before them.
static std::string verified(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string content{std::istreambuf_iterator<char>(file), {}}, start("\x72\x56\x0a\x12skpatchcore.sha256\x12\x40", 24);
  const size_t end = content.size() < 88 ? 0 : content.size() - 88;
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(content.data()), end, digest);
  for (unsigned char byte : digest) start += {"0123456789abcdef"[byte >> 4], "0123456789abcdef"[byte & 15]};
  if (content.substr(end) != start)
    throw std::runtime_error(path + ": the file is missing or damaged, or skpatchcore.export did not write it.");
  return content;
}

// Read a binary PPM file. `shape` becomes (1, height, width, 3).
static std::vector<uint8_t> read_ppm(const std::string& path, std::array<int64_t, 4>& shape) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  int64_t width = 0, height = 0, white = 0;
  file >> magic >> width >> height >> white;
  if (magic != "P6" || white != 255 || width < 1 || height < 1 || width > 65535 || height > 65535)
    throw std::runtime_error(path + ": expected a binary PPM file (P6) with 8 bits per channel and no comments.");
  file.get();  // one white space ends the header
  shape = {1, height, width, 3};
  std::vector<uint8_t> pixels(height * width * 3);
  if (!file.read(reinterpret_cast<char*>(pixels.data()), pixels.size()))
    throw std::runtime_error(path + ": the file ends before its last pixel.");
  return pixels;
}

int main(int n_arguments, char** arguments) try {
  if (n_arguments < 3) throw std::runtime_error("usage: score_image MODEL.onnx IMAGE.ppm ...");
  const std::string content = verified(arguments[1]);
  Ort::Env environment(ORT_LOGGING_LEVEL_WARNING, "score_image");
  Ort::Session session(environment, content.data(), content.size(), Ort::SessionOptions{});
  if (session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8)
    throw std::runtime_error("the exported detector does not take uint8 images.");
  const char *inputs[] = {"images"}, *outputs[] = {"score", "decision", "label", "p_value"};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  std::puts("image\tscore\tdecision\tlabel\tp_value");
  for (int i = 2; i < n_arguments; i++) {
    std::array<int64_t, 4> shape;
    std::vector<uint8_t> pixels = read_ppm(arguments[i], shape);
    const auto image = Ort::Value::CreateTensor(memory, pixels.data(), pixels.size(), shape.data(), shape.size());
    const auto found = session.Run(Ort::RunOptions{}, inputs, &image, 1, outputs, 4);
    std::printf("%s\t%.9g\t%.9g\t%lld\t%.9g\n", arguments[i], *found[0].GetTensorData<float>(),
                *found[1].GetTensorData<float>(), static_cast<long long>(*found[2].GetTensorData<int64_t>()),
                *found[3].GetTensorData<float>());
  }
} catch (const std::exception& error) {  // the error of a file, or Ort::Exception
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
