// Stands in for Triton's backend `onnxruntime`, which no package has: runs a model's graph in ONNX Runtime with the
// library that `model_operations` names. What is a graph's input is asked of the server by its name, states among them;
// outputs that are not the configuration's are handed back as states.

#include <onnxruntime_cxx_api.h>

#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

// What is used of tritonserver.h and tritonbackend.h, backend API 1.19; the server has it.
extern "C" {
struct Error;
struct Message;
struct Model;
struct Instance;
struct Request;
struct Input;
struct State;
struct Response;
struct Output;

Error* TRITONSERVER_ErrorNew(int code, const char* message);
void TRITONSERVER_ErrorDelete(Error* error);
const char* TRITONSERVER_ErrorMessage(Error* error);
Error* TRITONSERVER_MessageSerializeToJson(Message* message, const char** base, std::size_t* bytes);
Error* TRITONSERVER_MessageDelete(Message* message);
Error* TRITONBACKEND_ModelConfig(Model* model, std::uint32_t version, Message** config);
Error* TRITONBACKEND_ModelRepository(Model* model, int* kind, const char** location);
Error* TRITONBACKEND_ModelInstanceModel(Instance* instance, Model** model);
Error* TRITONBACKEND_ModelInstanceState(Instance* instance, void** state);
Error* TRITONBACKEND_ModelInstanceSetState(Instance* instance, void* state);
Error* TRITONBACKEND_RequestInput(Request* request, const char* name, Input** input);
Error* TRITONBACKEND_RequestRelease(Request* request, std::uint32_t flags);
Error* TRITONBACKEND_InputProperties(Input* input, const char** name, int* type, const std::int64_t** shape,
                                     std::uint32_t* rank, std::uint64_t* bytes, std::uint32_t* buffers);
Error* TRITONBACKEND_InputBuffer(Input* input, std::uint32_t index, const void** buffer, std::uint64_t* bytes,
                                 int* memory, std::int64_t* id);
Error* TRITONBACKEND_StateNew(State** state, Request* request, const char* name, int type, const std::int64_t* shape,
                              std::uint32_t rank);
Error* TRITONBACKEND_StateBuffer(State* state, void** buffer, std::uint64_t bytes, int* memory, std::int64_t* id);
Error* TRITONBACKEND_StateUpdate(State* state);
Error* TRITONBACKEND_ResponseNew(Response** response, Request* request);
Error* TRITONBACKEND_ResponseOutput(Response* response, Output** output, const char* name, int type,
                                    const std::int64_t* shape, std::uint32_t rank);
Error* TRITONBACKEND_OutputBuffer(Output* output, void** buffer, std::uint64_t bytes, int* memory, std::int64_t* id);
Error* TRITONBACKEND_ResponseSend(Response* response, std::uint32_t flags, Error* error);
}

namespace {

void check(Error* error) {
    if (error == nullptr) {
        return;
    }
    const std::string message = TRITONSERVER_ErrorMessage(error);
    TRITONSERVER_ErrorDelete(error);
    throw std::runtime_error(message);
}

// Null, or the error that `body` ends with.
template <typename Body>
Error* guarded(const Body& body) {
    constexpr int kInternal = 1;
    try {
        body();
        return nullptr;
    } catch (const std::exception& error) {
        return TRITONSERVER_ErrorNew(kInternal, error.what());
    }
}

// Element types, and Triton's numbers of them.
constexpr std::pair<ONNXTensorElementDataType, int> kTypes[] = {
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, 9},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, 10},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 11},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, 14},
};

ONNXTensorElementDataType onnx_type(int number) {
    for (const auto& [type, known] : kTypes) {
        if (known == number) {
            return type;
        }
    }
    throw std::runtime_error("a tensor of Triton's type " + std::to_string(number));
}

int triton_type(ONNXTensorElementDataType type) {
    for (const auto& [known, number] : kTypes) {
        if (known == type) {
            return number;
        }
    }
    throw std::runtime_error("a tensor of ONNX Runtime's type " + std::to_string(type));
}

// The first string after a key of the server's JSON; empty where the key is not there.
std::string string_after(const std::string& json, const std::string& key) {
    const auto found = json.find('"' + key + "\":");
    if (found == std::string::npos) {
        return "";
    }
    const auto start = json.find('"', found + key.size() + 3);
    const auto end = json.find('"', start + 1);
    return json.substr(start + 1, end - start - 1);
}

struct Host {
    Ort::Env environment;
    std::unique_ptr<Ort::Session> session;
    std::vector<std::string> inputs;
    std::vector<std::string> outputs;
};

std::unique_ptr<Host> open(Model* model) {
    Message* message = nullptr;
    const char* text = nullptr;
    std::size_t bytes = 0;
    check(TRITONBACKEND_ModelConfig(model, 1, &message));
    check(TRITONSERVER_MessageSerializeToJson(message, &text, &bytes));
    const std::string config(text, bytes);
    check(TRITONSERVER_MessageDelete(message));
    int kind = 0;
    const char* folder = nullptr;
    check(TRITONBACKEND_ModelRepository(model, &kind, &folder));
    auto host = std::make_unique<Host>();
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(1);
    const std::string library = string_after(config, "op_library_filename");
    if (!library.empty()) {
        options.RegisterCustomOpsLibrary(library.c_str());
    }
    const std::string file = std::string(folder) + "/1/" + string_after(config, "default_model_filename");
    host->session = std::make_unique<Ort::Session>(host->environment, file.c_str(), options);
    const Ort::AllocatorWithDefaultOptions allocator;
    for (std::size_t index = 0; index < host->session->GetInputCount(); ++index) {
        host->inputs.emplace_back(host->session->GetInputNameAllocated(index, allocator).get());
    }
    for (std::size_t index = 0; index < host->session->GetOutputCount(); ++index) {
        host->outputs.emplace_back(host->session->GetOutputNameAllocated(index, allocator).get());
    }
    return host;
}

// A tensor of a request, which has to be there.
Ort::Value input_of(Request* request, const std::string& name) {
    Input* input = nullptr;
    check(TRITONBACKEND_RequestInput(request, name.c_str(), &input));
    int type = 0;
    const std::int64_t* shape = nullptr;
    std::uint32_t rank = 0;
    std::uint64_t bytes = 0;
    std::uint32_t buffers = 0;
    check(TRITONBACKEND_InputProperties(input, nullptr, &type, &shape, &rank, &bytes, &buffers));
    const Ort::AllocatorWithDefaultOptions allocator;
    auto value = Ort::Value::CreateTensor(allocator, shape, rank, onnx_type(type));
    auto* to = static_cast<char*>(value.GetTensorMutableRawData());
    for (std::uint32_t index = 0; index < buffers; ++index) {
        const void* buffer = nullptr;
        std::uint64_t piece = 0;
        int memory = 0;
        std::int64_t id = 0;
        check(TRITONBACKEND_InputBuffer(input, index, &buffer, &piece, &memory, &id));
        std::memcpy(to, buffer, piece);
        to += piece;
    }
    return value;
}

void answer(Host& host, Request* request, Response* response) {
    std::vector<Ort::Value> given;
    std::vector<const char*> inputs;
    std::vector<const char*> outputs;
    for (const auto& name : host.inputs) {
        given.push_back(input_of(request, name));
        inputs.push_back(name.c_str());
    }
    for (const auto& name : host.outputs) {
        outputs.push_back(name.c_str());
    }
    const Ort::RunOptions options;
    const auto made =
        host.session->Run(options, inputs.data(), given.data(), given.size(), outputs.data(), outputs.size());
    for (std::size_t index = 0; index < made.size(); ++index) {
        const auto tensor = made[index].GetTensorTypeAndShapeInfo();
        const auto shape = tensor.GetShape();
        const int type = triton_type(tensor.GetElementType());
        const std::size_t bytes = made[index].GetTensorSizeInBytes();
        const auto rank = static_cast<std::uint32_t>(shape.size());
        void* buffer = nullptr;
        int memory = 0;
        std::int64_t id = 0;
        if (host.outputs[index] == "logits") {
            Output* output = nullptr;
            check(TRITONBACKEND_ResponseOutput(response, &output, outputs[index], type, shape.data(), rank));
            check(TRITONBACKEND_OutputBuffer(output, &buffer, bytes, &memory, &id));
            std::memcpy(buffer, made[index].GetTensorRawData(), bytes);
        } else {
            State* state = nullptr;
            check(TRITONBACKEND_StateNew(&state, request, outputs[index], type, shape.data(), rank));
            check(TRITONBACKEND_StateBuffer(state, &buffer, bytes, &memory, &id));
            std::memcpy(buffer, made[index].GetTensorRawData(), bytes);
            check(TRITONBACKEND_StateUpdate(state));
        }
    }
}

}  // namespace

extern "C" {

Error* TRITONBACKEND_ModelInstanceInitialize(Instance* instance) {
    return guarded([&] {
        Model* model = nullptr;
        check(TRITONBACKEND_ModelInstanceModel(instance, &model));
        check(TRITONBACKEND_ModelInstanceSetState(instance, open(model).release()));
    });
}

Error* TRITONBACKEND_ModelInstanceFinalize(Instance* instance) {
    return guarded([&] {
        void* state = nullptr;
        check(TRITONBACKEND_ModelInstanceState(instance, &state));
        delete static_cast<Host*>(state);
    });
}

Error* TRITONBACKEND_ModelInstanceExecute(Instance* instance, Request** requests, std::uint32_t count) {
    constexpr std::uint32_t kFinal = 1;
    constexpr std::uint32_t kAll = 1;
    void* state = nullptr;
    if (Error* error = TRITONBACKEND_ModelInstanceState(instance, &state)) {
        return error;
    }
    for (std::uint32_t index = 0; index < count; ++index) {
        Response* response = nullptr;
        Error* error = TRITONBACKEND_ResponseNew(&response, requests[index]);
        if (error == nullptr) {
            error = guarded([&] { answer(*static_cast<Host*>(state), requests[index], response); });
            TRITONSERVER_ErrorDelete(TRITONBACKEND_ResponseSend(response, kFinal, error));
        }
        TRITONSERVER_ErrorDelete(error);
        TRITONSERVER_ErrorDelete(TRITONBACKEND_RequestRelease(requests[index], kAll));
    }
    return nullptr;
}
}
