// A program of one's own around a package: ONNX Runtime's C++ interface, the library of RAT+ operators, and nothing of
// `ratplus`.
//
//     g++ -std=c++17 -I ONNXRUNTIME/include custom_host.cpp ONNXRUNTIME/lib/libonnxruntime.so -o custom_host
//     custom_host libratplus_ort.so 12,503,88 16 PACKAGE/decode.onnx PACKAGE/prefill_64.onnx ...
//
// prints 16 tokens after the given ones, the likeliest each time, in slot 0 of a package with `--logits last`.
// docs/by-hand.md says what the inputs and outputs mean.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

const std::string kPast = "past_key_values.";

// Memory of one state. Its content does not matter: a sequence starts at past_length 0.
struct State {
    std::vector<std::int64_t> shape;
    ONNXTensorElementDataType type;
    std::vector<std::uint8_t> bytes;
};

std::size_t size_of(ONNXTensorElementDataType type) {
    switch (type) {
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
            return 4;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
            return 2;
        default:
            throw std::runtime_error("a state of a type that no package has");
    }
}

// One ONNX file of the package, bound to the states: the library updates them in place, so that past and present are one
// buffer, bound once.
class Engine {
  public:
    Engine(const Ort::Env& env, const char* file, const Ort::SessionOptions& options,
           std::map<std::string, State>& states)
        : session_(env, file, options), binding_(session_) {
        const Ort::AllocatorWithDefaultOptions allocator;
        const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
        for (std::size_t index = 0; index < session_.GetInputCount(); ++index) {
            const std::string name = session_.GetInputNameAllocated(index, allocator).get();
            const auto info = session_.GetInputTypeInfo(index);
            const auto tensor = info.GetTensorTypeAndShapeInfo();
            if (name == "input_ids") {
                length_ = tensor.GetShape().at(1);
                if (tensor.GetShape().at(0) != 1) {
                    throw std::runtime_error(std::string(file) + ": expected an engine for one sequence");
                }
            }
            if (name.rfind(kPast, 0) != 0) continue;
            State& state = states[name];
            if (state.bytes.empty()) {
                state.shape = tensor.GetShape();
                state.type = tensor.GetElementType();
                std::size_t count = size_of(state.type);
                for (const std::int64_t dimension : state.shape) count *= static_cast<std::size_t>(dimension);
                state.bytes.resize(count);
            }
            values_.push_back(Ort::Value::CreateTensor(memory, state.bytes.data(), state.bytes.size(),
                                                       state.shape.data(), state.shape.size(), state.type));
            binding_.BindInput(name.c_str(), values_.back());
            binding_.BindOutput(("present." + name.substr(kPast.size())).c_str(), values_.back());
        }
        ids_.resize(static_cast<std::size_t>(length_));
        integers("input_ids", ids_, {1, length_}, memory);
        integers("past_length", past_length_, {1}, memory);
        integers("seq_length", seq_length_, {1}, memory);
        binding_.BindOutput("logits", memory);
    }

    std::int64_t length() const { return length_; }

    // Runs a chunk of at most `length` tokens; the likeliest next token.
    std::int64_t step(const std::int64_t* tokens, std::int64_t count, std::int64_t past_length) {
        std::copy(tokens, tokens + count, ids_.begin());
        std::fill(ids_.begin() + count, ids_.end(), 0);
        past_length_[0] = past_length;
        seq_length_[0] = count;
        session_.Run(Ort::RunOptions{nullptr}, binding_);
        const std::vector<Ort::Value> outputs = binding_.GetOutputValues();
        // In the order in which they were bound: logits last.
        const Ort::Value& logits = outputs.back();
        const std::int64_t vocabulary = logits.GetTensorTypeAndShapeInfo().GetShape().back();
        const float* row = logits.GetTensorData<float>();
        return std::max_element(row, row + vocabulary) - row;
    }

  private:
    void integers(const char* name, std::vector<std::int64_t>& values, const std::vector<std::int64_t>& shape,
                  const Ort::MemoryInfo& memory) {
        values_.push_back(Ort::Value::CreateTensor<std::int64_t>(memory, values.data(), values.size(), shape.data(),
                                                                 shape.size()));
        binding_.BindInput(name, values_.back());
    }

    Ort::Session session_;
    Ort::IoBinding binding_;
    std::vector<Ort::Value> values_;
    std::vector<std::int64_t> ids_, past_length_ = {0}, seq_length_ = {0};
    std::int64_t length_ = 0;
};

std::vector<std::int64_t> numbers(const std::string& words) {
    std::vector<std::int64_t> found;
    std::istringstream stream(words);
    for (std::string word; std::getline(stream, word, ',');) found.push_back(std::stoll(word));
    return found;
}

int run(int count, char** words) {
    if (count < 5) {
        std::fprintf(stderr, "custom_host LIBRARY TOKENS COUNT ENGINE.onnx...\n");
        return 2;
    }
    const Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "custom_host");
    Ort::SessionOptions options;
    options.RegisterCustomOpsLibrary(words[1]);
    std::map<std::string, State> states;
    std::map<std::int64_t, std::unique_ptr<Engine>> engines;  // by length
    for (int index = 4; index < count; ++index) {
        auto engine = std::make_unique<Engine>(env, words[index], options, states);
        engines[engine->length()] = std::move(engine);
    }
    std::vector<std::int64_t> tokens = numbers(words[2]);
    const std::size_t end = tokens.size() + static_cast<std::size_t>(std::stoll(words[3]));
    const std::int64_t longest = engines.rbegin()->first;
    for (std::int64_t past = 0; tokens.size() < end;) {
        // The prompt in the longest chunks there are, then a token at a time.
        const std::int64_t left = static_cast<std::int64_t>(tokens.size()) - past;
        const std::int64_t chunk = std::min(left, longest);
        Engine& engine = *engines.lower_bound(chunk)->second;
        const std::int64_t next = engine.step(tokens.data() + past, chunk, past);
        past += chunk;
        if (chunk < left) continue;
        tokens.push_back(next);
        std::printf("%lld%s", static_cast<long long>(next), tokens.size() < end ? " " : "\n");
    }
    return 0;
}

}  // namespace

int main(int count, char** words) {
    try {
        return run(count, words);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 2;
    }
}
