// What a TensorRT builder and runtime do with a plugin, as C functions for trt_driver.py: compiled
// once with the headers of each host.

#include <NvInfer.h>
#include <NvOnnxParser.h>

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

using namespace nvinfer1;

namespace {

// A thread's messages; the host logs in the thread that calls it.
thread_local std::string messages;

class Logger final : public ILogger {
public:
    void log(Severity severity, AsciiChar const* message) noexcept override {
        static char const* const names[] = {"INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"};
        std::string const line = std::string(names[static_cast<int32_t>(severity)]) + ": " + message + "\n";
        if (echo) {
            std::fputs(line.c_str(), stderr);
        }
        messages += line;
    }
    // For a process that may not live to tell.
    bool echo = false;
};

Logger logger;

template <class Function>
Function* symbol(void* library, char const* name) {
    return reinterpret_cast<Function*>(dlsym(library, name));
}

// Expressions of known or open dimensions.
class Expression final : public IDimensionExpr {
    struct Value final : apiv::VDimensionExpr {
        explicit Value(int64_t dim) : dim(dim) {}
        bool isConstant() const override { return dim >= 0; }
        int64_t getConstantValue() const override { return dim; }
        bool isSizeTensor() const override { return false; }
        int64_t dim;
    };

public:
    explicit Expression(int64_t dim) : value_(dim) { mImpl = &value_; }

private:
    Value value_;
};

class Expressions final : public IExprBuilder {
    struct Made final : apiv::VExprBuilder {
        IDimensionExpr const* constant(int64_t value) override {
            expressions.push_back(std::make_unique<Expression>(value));
            return expressions.back().get();
        }
        // A rule that computes would be another's: ours only pass dimensions on.
        IDimensionExpr const* operation(DimensionOperation, IDimensionExpr const&, IDimensionExpr const&) override {
            return nullptr;
        }
        IDimensionExpr const* declareSizeTensor(int32_t, IDimensionExpr const&, IDimensionExpr const&) override {
            return nullptr;
        }
        std::vector<std::unique_ptr<Expression>> expressions;
    };

public:
    Expressions() { mImpl = &made_; }

private:
    Made made_;
};

class Context final : public IPluginResourceContext {
public:
    IGpuAllocator* getGpuAllocator() const noexcept override { return nullptr; }
    IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
};

template <class Capability>
Capability* capability(void* plugin, PluginCapabilityType type) {
    return static_cast<Capability*>(static_cast<IPluginV3*>(plugin)->getCapabilityInterface(type));
}

IPluginV3OneBuildV2* build(void* plugin) {
    return capability<IPluginV3OneBuildV2>(plugin, PluginCapabilityType::kBUILD);
}

IPluginV3OneRuntime* run(void* plugin) {
    return capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

// A tensor: rank, 8 dimensions, type, format.
constexpr int32_t kWords = 12;

PluginTensorDesc description(int64_t const* words) {
    PluginTensorDesc tensor{};
    tensor.dims.nbDims = static_cast<int32_t>(words[0]);
    std::copy(words + 1, words + 9, tensor.dims.d);
    tensor.type = static_cast<DataType>(words[9]);
    tensor.format = static_cast<TensorFormat>(words[10]);
    tensor.scale = 1.0F;
    return tensor;
}

std::vector<PluginTensorDesc> descriptions(int64_t const* words, int32_t count) {
    std::vector<PluginTensorDesc> tensors;
    for (int32_t i = 0; i < count; ++i) {
        tensors.push_back(description(words + i * kWords));
    }
    return tensors;
}

std::vector<DynamicPluginTensorDesc> dynamic(int64_t const* words, int32_t count) {
    std::vector<DynamicPluginTensorDesc> tensors;
    for (auto& tensor : descriptions(words, count)) {
        Dims const known = tensor.dims;
        // The last word: how many first dimensions are open, of which the profile has one size.
        std::fill_n(tensor.dims.d, words[kWords * tensors.size() + kWords - 1], -1);
        tensors.push_back({tensor, known, known, known});
    }
    return tensors;
}

}  // namespace

extern "C" {

// Messages since the last call; valid until the next.
char const* take_messages() {
    static thread_local std::string taken;
    taken.swap(messages);
    messages.clear();
    return taken.c_str();
}

int32_t header_version() {
    return NV_TENSORRT_MAJOR * 10000 + NV_TENSORRT_MINOR * 100 + NV_TENSORRT_PATCH;
}

// The registry of a host library; our logger becomes the host's.
void* open_host(char const* path) {
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        messages += dlerror();
        return nullptr;
    }
    using Version = int32_t() noexcept;
    using Registry = IPluginRegistry*() noexcept;
    using Runtime = void*(void*, int32_t) noexcept;
    int32_t const version = symbol<Version>(library, "getInferLibVersion")();
    // Without a GPU there is no runtime, but the logger is taken.
    symbol<Runtime>(library, "createInferRuntime_INTERNAL")(&logger, version);
    return symbol<Registry>(library, "getPluginRegistry")();
}

int32_t host_version(char const* path) {
    void* library = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    return library == nullptr ? -1 : symbol<int32_t() noexcept>(library, "getInferLibVersion")();
}

// Has a builder and the ONNX parser of two libraries read a model, the plugin library being loaded where
// there is one, and build it where there are profiles: a row for each input of each, its rank and sizes.
// Everything is printed. Whether it was read, or the size of the plan.
int64_t parse_model(char const* host, char const* parser_path, char const* plugins, char const* model,
    int64_t const* sizes, int32_t profiles) {
    logger.echo = true;
    void* library = dlopen(host, RTLD_NOW | RTLD_GLOBAL);
    void* parser_library = dlopen(parser_path, RTLD_NOW | RTLD_GLOBAL);
    if (library == nullptr || parser_library == nullptr) {
        std::fprintf(stderr, "%s\n", dlerror());
        return -1;
    }
    using MakeBuilder = void*(void*, int32_t) noexcept;
    using MakeParser = void*(void*, void*, int32_t) noexcept;
    int32_t const version = symbol<int32_t() noexcept>(library, "getInferLibVersion")();
    auto* builder = static_cast<IBuilder*>(symbol<MakeBuilder>(library, "createInferBuilder_INTERNAL")(&logger, version));
    if (plugins != nullptr) {
        builder->getPluginRegistry().loadLibrary(plugins);
    }
    auto* network = builder->createNetworkV2(0);
    auto* parser = static_cast<nvonnxparser::IParser*>(symbol<MakeParser>(
        parser_library, "createNvOnnxParser_INTERNAL")(network, &logger, NV_ONNX_PARSER_VERSION));
    if (!parser->parseFromFile(model, static_cast<int32_t>(ILogger::Severity::kVERBOSE))) {
        return 0;
    }
    if (profiles == 0) {
        return 1;
    }
    auto* config = builder->createBuilderConfig();
    for (int32_t p = 0; p < profiles; ++p) {
        auto* profile = builder->createOptimizationProfile();
        for (int32_t i = 0; i < network->getNbInputs(); ++i, sizes += 9) {
            Dims shape{};
            shape.nbDims = static_cast<int32_t>(sizes[0]);
            std::copy_n(sizes + 1, shape.nbDims, shape.d);
            for (auto which : {OptProfileSelector::kMIN, OptProfileSelector::kOPT, OptProfileSelector::kMAX}) {
                profile->setDimensions(network->getInput(i)->getName(), which, shape);
            }
        }
        config->addOptimizationProfile(profile);
    }
    auto* plan = builder->buildSerializedNetwork(*network, *config);
    return plan == nullptr ? 0 : static_cast<int64_t>(plan->size());
}

void* load_library(void* registry, char const* path) {
    return static_cast<IPluginRegistry*>(registry)->loadLibrary(path);
}

void unload_library(void* registry, void* handle) {
    static_cast<IPluginRegistry*>(registry)->deregisterLibrary(handle);
}

int32_t creator_count(void* registry) {
    int32_t count = 0;
    static_cast<IPluginRegistry*>(registry)->getAllCreators(&count);
    return count;
}

void* creator_at(void* registry, int32_t index) {
    int32_t count = 0;
    auto const* all = static_cast<IPluginRegistry*>(registry)->getAllCreators(&count);
    return index < count ? all[index] : nullptr;
}

void* get_creator(void* registry, char const* name, char const* version, char const* domain) {
    return static_cast<IPluginRegistry*>(registry)->getCreator(name, version, domain);
}

char const* creator_kind(void* creator) {
    return static_cast<IPluginCreatorInterface*>(creator)->getInterfaceInfo().kind;
}

// Of creators of kind "PLUGIN CREATOR_V3ONE" only: 0 name, 1 version, 2 namespace.
char const* creator_text(void* creator, int32_t which) {
    auto* ours = static_cast<IPluginCreatorV3One*>(static_cast<IPluginCreatorInterface*>(creator));
    return which == 0 ? ours->getPluginName() : which == 1 ? ours->getPluginVersion() : ours->getPluginNamespace();
}

PluginFieldCollection const* creator_fields(void* creator) {
    return static_cast<IPluginCreatorV3One*>(static_cast<IPluginCreatorInterface*>(creator))->getFieldNames();
}

void* create_plugin(void* creator, char const* name, PluginFieldCollection const* fields, int32_t phase) {
    auto* ours = static_cast<IPluginCreatorV3One*>(static_cast<IPluginCreatorInterface*>(creator));
    return ours->createPlugin(name, fields, static_cast<TensorRTPhase>(phase));
}

void destroy_plugin(void* plugin) {
    delete static_cast<IPluginV3*>(plugin);
}

void* clone_plugin(void* plugin) {
    return static_cast<IPluginV3*>(plugin)->clone();
}

void* attach_plugin(void* plugin) {
    Context context;
    return run(plugin)->attachToContext(&context);
}

// Kind and version of a capability: 0 core, 1 build, 2 runtime.
char const* capability_kind(void* plugin, int32_t type, int32_t* major) {
    auto* found = static_cast<IPluginV3*>(plugin)->getCapabilityInterface(static_cast<PluginCapabilityType>(type));
    if (found == nullptr) {
        return nullptr;
    }
    auto const info = found->getInterfaceInfo();
    *major = info.major;
    return info.kind;
}

char const* core_text(void* plugin, int32_t which) {
    auto* core = capability<IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE);
    return which == 0 ? core->getPluginName() : which == 1 ? core->getPluginVersion() : core->getPluginNamespace();
}

int32_t output_count(void* plugin) {
    return build(plugin)->getNbOutputs();
}

int32_t aliased_input(void* plugin, int32_t output) {
    return build(plugin)->getAliasedInput(output);
}

char const* timing_cache_id(void* plugin) {
    return build(plugin)->getTimingCacheID();
}

int32_t output_types(void* plugin, int32_t const* inputs, int32_t input_count, int32_t* outputs, int32_t output_count) {
    return build(plugin)->getOutputDataTypes(
        reinterpret_cast<DataType*>(outputs), output_count, reinterpret_cast<DataType const*>(inputs), input_count);
}

// Ranks and dimensions, 9 words a tensor in and out; -1 is an open dimension, and out -1000 - 10 *
// input - axis is one that the rule takes from an open one.
int32_t output_shapes(void* plugin, int64_t const* inputs, int32_t input_count, int64_t* outputs, int32_t output_count) {
    std::vector<std::unique_ptr<Expression>> made;
    std::vector<DimsExprs> from(input_count), to(output_count);
    for (int32_t i = 0; i < input_count; ++i) {
        from[i].nbDims = static_cast<int32_t>(inputs[i * 9]);
        for (int32_t axis = 0; axis < from[i].nbDims; ++axis) {
            made.push_back(std::make_unique<Expression>(inputs[i * 9 + 1 + axis]));
            from[i].d[axis] = made.back().get();
        }
    }
    Expressions expressions;
    int32_t const code =
        build(plugin)->getOutputShapes(from.data(), input_count, nullptr, 0, to.data(), output_count, expressions);
    for (int32_t o = 0; code == 0 && o < output_count; ++o) {
        outputs[o * 9] = to[o].nbDims;
        for (int32_t axis = 0; axis < to[o].nbDims; ++axis) {
            auto const* dim = to[o].d[axis];
            int64_t value = dim->isConstant() ? dim->getConstantValue() : -1;
            for (int32_t i = 0; value == -1 && i < input_count; ++i) {
                for (int32_t other = 0; other < from[i].nbDims; ++other) {
                    if (from[i].d[other] == dim) {
                        value = -1000 - 10 * i - other;
                    }
                }
            }
            outputs[o * 9 + 1 + axis] = value;
        }
    }
    return code;
}

int32_t supports(void* plugin, int32_t position, int64_t const* tensors, int32_t inputs, int32_t outputs) {
    auto const all = dynamic(tensors, inputs + outputs);
    return build(plugin)->supportsFormatCombination(position, all.data(), inputs, outputs) ? 1 : 0;
}

int32_t configure(void* plugin, int64_t const* tensors, int32_t inputs, int32_t outputs) {
    auto const all = dynamic(tensors, inputs + outputs);
    return build(plugin)->configurePlugin(all.data(), inputs, all.data() + inputs, outputs);
}

size_t workspace_size(void* plugin, int64_t const* tensors, int32_t inputs, int32_t outputs) {
    auto const all = dynamic(tensors, inputs + outputs);
    return build(plugin)->getWorkspaceSize(all.data(), inputs, all.data() + inputs, outputs);
}

int32_t shape_change(void* plugin, int64_t const* tensors, int32_t inputs, int32_t outputs) {
    auto const all = descriptions(tensors, inputs + outputs);
    return run(plugin)->onShapeChange(all.data(), inputs, all.data() + inputs, outputs);
}

int32_t enqueue(void* plugin, int64_t const* tensors, int32_t inputs, int32_t outputs, void const* const* from,
    void* const* to, void* workspace, void* stream) {
    auto const all = descriptions(tensors, inputs + outputs);
    return run(plugin)->enqueue(
        all.data(), all.data() + inputs, from, to, workspace, static_cast<cudaStream_t>(stream));
}

PluginFieldCollection const* fields_to_serialize(void* plugin) {
    return run(plugin)->getFieldsToSerialize();
}
}
