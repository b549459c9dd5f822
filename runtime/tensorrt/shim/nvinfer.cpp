// TensorRT's C++ interface behind C functions. Compiled once per release of the headers, whose
// namespaces macros rename; nothing of TensorRT is linked. No exception leaves a function.

#include "nvinfer_api.h"

#include <NvInfer.h>
#include <NvOnnxParser.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace RATPLUS_NAMESPACE
{

namespace trt = nvinfer1;
namespace onnx = nvonnxparser;

void say(RatplusText text, char const* message) noexcept
{
    if (text.capacity > 0)
    {
        std::snprintf(text.data, text.capacity, "%s", message);
    }
}

//! Runs `work`; 0, or 1 and the message of what it threw.
template <typename Work>
int32_t guarded(RatplusText text, Work work) noexcept
{
    try
    {
        work();
        return 0;
    }
    catch (std::exception const& error)
    {
        say(text, error.what());
    }
    catch (...)
    {
        say(text, "an exception of unknown type");
    }
    return 1;
}

template <typename T>
T& expect(T* pointer, char const* call)
{
    if (pointer == nullptr)
    {
        throw std::runtime_error(std::string{call} + " failed");
    }
    return *pointer;
}

class Logger final : public trt::ILogger
{
public:
    Logger(RatplusLog log, void* user) noexcept
        : mLog{log}
        , mUser{user}
    {
    }

    void log(Severity severity, trt::AsciiChar const* text) noexcept override
    {
        mLog(mUser, static_cast<int32_t>(severity), text == nullptr ? "" : text);
    }

private:
    RatplusLog mLog;
    void* mUser;
};

void* loggerNew(RatplusLog log, void* user) noexcept
{
    return new (std::nothrow) Logger{log, user};
}

void loggerFree(void* logger) noexcept
{
    delete static_cast<Logger*>(logger);
}

int32_t elementType(trt::DataType type) noexcept
{
    switch (type)
    {
    case trt::DataType::kFLOAT: return 0;
    case trt::DataType::kHALF: return 1;
    case trt::DataType::kBF16: return 2;
    case trt::DataType::kINT64: return 3;
    default: return 100 + static_cast<int32_t>(type);
    }
}

void describe(RatplusTensor& to, char const* name, bool isInput, trt::DataType type, trt::Dims const& shape) noexcept
{
    to = {};
    to.name = name;
    to.isInput = isInput ? 1 : 0;
    to.dtype = elementType(type);
    to.rank = shape.nbDims;
    for (int32_t i = 0; i < std::min(shape.nbDims, 8); ++i)
    {
        to.dims[i] = shape.d[i];
    }
}

trt::Dims shapeOf(RatplusTensor const& tensor) noexcept
{
    trt::Dims shape{};
    shape.nbDims = std::min(tensor.rank, 8);
    std::copy_n(tensor.dims, shape.nbDims, shape.d);
    return shape;
}

//! A parsed model and all that building it takes, destroyed from the last to the first.
struct Network
{
    std::unique_ptr<trt::IBuilder> builder;
    std::unique_ptr<trt::INetworkDefinition> network;
    std::unique_ptr<trt::IBuilderConfig> config;
#if !RATPLUS_RTX
    std::unique_ptr<trt::ITimingCache> timingCache;
#endif
    // Holds weights that the network refers to.
    std::unique_ptr<onnx::IParser> parser;
};

//! The errors of a parser, or of what reads weights with it, with the nodes they are about.
template <typename Parser>
std::string parserErrors(Parser const& parser)
{
    std::string text = "the ONNX parser refused the model";
    for (int32_t i = 0; i < parser.getNbErrors(); ++i)
    {
        onnx::IParserError const* error = parser.getError(i);
        if (error == nullptr)
        {
            continue;
        }
        auto const word = [](char const* text) { return text == nullptr ? "" : text; };
        text += "\n    ";
        if (word(error->nodeOperator())[0] != '\0')
        {
            text += std::string{"node `"} + word(error->nodeName()) + "` (" + word(error->nodeOperator()) + "): ";
        }
        for (int32_t depth = 0; depth < error->localFunctionStackSize(); ++depth)
        {
            text += std::string{"in function "} + word(error->localFunctionStack()[depth]) + ": ";
        }
        text += word(error->desc());
    }
    return text;
}

void configure(trt::IBuilderConfig& config, RatplusBuildSettings const& settings)
{
    // On by default: products of f32 would keep 10 bits of each operand.
    config.clearFlag(trt::BuilderFlag::kTF32);
    if (config.getFlag(trt::BuilderFlag::kTF32))
    {
        throw std::runtime_error("IBuilderConfig::clearFlag left kTF32 on");
    }
    if (settings.workspaceBytes > 0)
    {
        config.setMemoryPoolLimit(trt::MemoryPoolType::kWORKSPACE, settings.workspaceBytes);
    }
    if (settings.optimizationLevel >= 0)
    {
        config.setBuilderOptimizationLevel(settings.optimizationLevel);
    }
    if (settings.versionCompatible != 0)
    {
        config.setFlag(trt::BuilderFlag::kVERSION_COMPATIBLE);
    }
    if (settings.hardwareCompatibility != 0)
    {
        config.setHardwareCompatibilityLevel(settings.hardwareCompatibility == 1
                ? trt::HardwareCompatibilityLevel::kAMPERE_PLUS
                : trt::HardwareCompatibilityLevel::kSAME_COMPUTE_CAPABILITY);
    }
    if (settings.detailed != 0)
    {
        config.setProfilingVerbosity(trt::ProfilingVerbosity::kDETAILED);
    }
    if (settings.stripWeights != 0)
    {
        config.setFlag(trt::BuilderFlag::kSTRIP_PLAN);
        // What is put in later is what was there: nothing is given up for it.
        config.setFlag(trt::BuilderFlag::kREFIT_IDENTICAL);
    }
}

//! One static set of input shapes.
void addProfile(trt::IBuilder& builder, trt::IBuilderConfig& config, RatplusTensor const* inputs, int32_t count)
{
    trt::IOptimizationProfile& profile
        = expect(builder.createOptimizationProfile(), "IBuilder::createOptimizationProfile");
    for (int32_t i = 0; i < count; ++i)
    {
        for (auto const which :
            {trt::OptProfileSelector::kMIN, trt::OptProfileSelector::kOPT, trt::OptProfileSelector::kMAX})
        {
            if (!profile.setDimensions(inputs[i].name, which, shapeOf(inputs[i])))
            {
                throw std::runtime_error(
                    std::string{"IOptimizationProfile::setDimensions refused those of `"} + inputs[i].name + "`");
            }
        }
    }
    if (config.addOptimizationProfile(&profile) < 0)
    {
        throw std::runtime_error("IBuilderConfig::addOptimizationProfile failed");
    }
}

int32_t networkNew(RatplusSymbols const* symbols, void* logger, RatplusNetworkRequest const* request, void** out,
    RatplusText text) noexcept
{
    return guarded(text, [&] {
        auto const createBuilder = reinterpret_cast<void* (*) (void*, int32_t)>(symbols->createBuilder);
        auto const createParser = reinterpret_cast<void* (*) (void*, void*, int)>(symbols->createParser);
        auto& log = *static_cast<trt::ILogger*>(static_cast<Logger*>(logger));
        auto made = std::make_unique<Network>();
        made->builder.reset(static_cast<trt::IBuilder*>(createBuilder(&log, NV_TENSORRT_VERSION)));
        trt::IBuilder& builder = expect(made->builder.get(), "createInferBuilder");
        trt::NetworkDefinitionCreationFlags flags = 0;
#if !RATPLUS_RTX && NV_TENSORRT_MAJOR < 11
        // The types of the model are kept. Later releases know no other kind of network.
        flags = 1U << static_cast<uint32_t>(trt::NetworkDefinitionCreationFlag::kSTRONGLY_TYPED);
#endif
        made->network.reset(builder.createNetworkV2(flags));
        expect(made->network.get(), "IBuilder::createNetworkV2");
        made->config.reset(builder.createBuilderConfig());
        trt::IBuilderConfig& config = expect(made->config.get(), "IBuilder::createBuilderConfig");
        configure(config, request->settings);
        for (int32_t i = 0; i < request->profileCount; ++i)
        {
            addProfile(builder, config, request->inputs + i * request->inputCount, request->inputCount);
        }
        made->parser.reset(static_cast<onnx::IParser*>(createParser(made->network.get(), &log, NV_ONNX_PARSER_VERSION)));
        onnx::IParser& parser = expect(made->parser.get(), "createNvOnnxParser");
#if !RATPLUS_RTX
        if (request->pluginLibrary != nullptr)
        {
            // The builder's own registry: the process's is not ours to change.
            if (builder.getPluginRegistry().loadLibrary(request->pluginLibrary) == nullptr)
            {
                throw std::runtime_error(std::string{"IPluginRegistry::loadLibrary refused "} + request->pluginLibrary);
            }
            // Over the model's functions of the same names.
            parser.setFlag(onnx::OnnxParserFlag::kENABLE_PLUGIN_OVERRIDE);
            config.setPreviewFeature(trt::PreviewFeature::kALIASED_PLUGIN_IO_10_03, true);
        }
        made->timingCache.reset(config.createTimingCache(nullptr, 0));
        for (int32_t i = 0; i < request->timingCacheCount && made->timingCache != nullptr; ++i)
        {
            RatplusView const& earlier = request->timingCaches[i];
            std::unique_ptr<trt::ITimingCache> const cache{config.createTimingCache(earlier.data, earlier.size)};
            // Another GPU's, or damaged, is left alone: everything is measured anew.
            static_cast<void>(cache != nullptr && made->timingCache->combine(*cache, false));
        }
        if (made->timingCache != nullptr && !config.setTimingCache(*made->timingCache, false))
        {
            made->timingCache.reset();
        }
#else
        if (request->capabilityCount > 0 && !config.setNbComputeCapabilities(request->capabilityCount))
        {
            throw std::runtime_error("IBuilderConfig::setNbComputeCapabilities failed");
        }
        for (int32_t i = 0; i < request->capabilityCount; ++i)
        {
            int32_t const capability = request->capabilities[i];
            if (!config.setComputeCapability(static_cast<trt::ComputeCapability>(capability), i))
            {
                throw std::runtime_error("it builds nothing for compute capability "
                    + std::to_string(capability / 10) + "." + std::to_string(capability % 10));
            }
        }
#endif
        if (!parser.parse(request->model, request->modelSize, request->path))
        {
            throw std::runtime_error(parserErrors(parser));
        }
        *out = made.release();
    });
}

int32_t networkTensorCount(void* network) noexcept
{
    auto const& of = *static_cast<Network*>(network)->network;
    return of.getNbInputs() + of.getNbOutputs();
}

int32_t networkTensor(void* network, int32_t index, RatplusTensor* out) noexcept
{
    auto const& of = *static_cast<Network*>(network)->network;
    bool const isInput = index < of.getNbInputs();
    trt::ITensor const* tensor = isInput ? of.getInput(index) : of.getOutput(index - of.getNbInputs());
    if (tensor == nullptr)
    {
        return 1;
    }
    describe(*out, tensor->getName(), isInput, tensor->getType(), tensor->getDimensions());
    return 0;
}

int32_t networkCapabilities(
    [[maybe_unused]] void* network, [[maybe_unused]] int32_t* capabilities, [[maybe_unused]] int32_t capacity) noexcept
{
#if RATPLUS_RTX
    auto const& config = *static_cast<Network*>(network)->config;
    int32_t const count = config.getNbComputeCapabilities();
    for (int32_t i = 0; i < std::min(count, capacity); ++i)
    {
        capabilities[i] = static_cast<int32_t>(config.getComputeCapability(i));
    }
    return count;
#else
    return 0;
#endif
}

void give(RatplusBytes& to, trt::IHostMemory& memory) noexcept
{
    to = {&memory, memory.data(), memory.size()};
}

int32_t networkBuild(void* network, RatplusBytes* out, RatplusText text) noexcept
{
    return guarded(text, [&] {
        auto& of = *static_cast<Network*>(network);
        give(*out,
            expect(of.builder->buildSerializedNetwork(*of.network, *of.config), "IBuilder::buildSerializedNetwork"));
    });
}

int32_t networkTimingCache([[maybe_unused]] void* network, RatplusBytes* out, RatplusText text) noexcept
{
    return guarded(text, [&] {
        *out = {};
#if !RATPLUS_RTX
        auto const& cache = static_cast<Network*>(network)->timingCache;
        if (cache != nullptr)
        {
            give(*out, expect(cache->serialize(), "ITimingCache::serialize"));
        }
#endif
    });
}

void networkFree(void* network) noexcept
{
    delete static_cast<Network*>(network);
}

void bytesFree(void* owner) noexcept
{
    delete static_cast<trt::IHostMemory*>(owner);
}

int32_t runtimeNew(
    RatplusSymbols const* symbols, void* logger, char const* pluginLibrary, void** out, RatplusText text) noexcept
{
    return guarded(text, [&] {
        auto const create = reinterpret_cast<void* (*) (void*, int32_t)>(symbols->createRuntime);
        auto& log = *static_cast<trt::ILogger*>(static_cast<Logger*>(logger));
        std::unique_ptr<trt::IRuntime> runtime{static_cast<trt::IRuntime*>(create(&log, NV_TENSORRT_VERSION))};
        expect(runtime.get(), "createInferRuntime");
        if (pluginLibrary != nullptr && runtime->getPluginRegistry().loadLibrary(pluginLibrary) == nullptr)
        {
            throw std::runtime_error(std::string{"IPluginRegistry::loadLibrary refused "} + pluginLibrary);
        }
        *out = runtime.release();
    });
}

int32_t runtimeCheck([[maybe_unused]] void* runtime, [[maybe_unused]] void const* plan, [[maybe_unused]] size_t size,
    uint64_t* diagnostics, RatplusText text) noexcept
{
    return guarded(text, [&] {
        *diagnostics = 0;
#if RATPLUS_RTX
        auto const& of = *static_cast<trt::IRuntime*>(runtime);
        auto const bytes = static_cast<int64_t>(size);
        if (bytes < of.getEngineHeaderSize())
        {
            throw std::runtime_error("the plan is shorter than its header");
        }
        uint64_t found = 0;
        if (of.getEngineValidity(plan, bytes, &found) == trt::EngineValidity::kINVALID)
        {
            *diagnostics = found == 0 ? ~uint64_t{0} : found;
        }
#endif
    });
}

void runtimeFree(void* runtime) noexcept
{
    delete static_cast<trt::IRuntime*>(runtime);
}

//! A plan in memory, read from front to back.
class Reader final : public trt::IStreamReaderV2
{
public:
    explicit Reader(RatplusPlan const& plan) noexcept
        : mPlan{plan}
    {
    }

    int64_t read(void* to, int64_t size, cudaStream_t stream) noexcept override
    {
        int64_t const count = std::max<int64_t>(0, std::min(size, static_cast<int64_t>(mPlan.size) - mAt));
        auto const* from = static_cast<char const*>(mPlan.data) + mAt;
        if (count > 0 && mPlan.copy(mPlan.user, to, from, static_cast<size_t>(count), stream) != 0)
        {
            return -1;
        }
        mAt += count;
        return count;
    }

    bool seek(int64_t offset, trt::SeekPosition where) noexcept override
    {
        auto const end = static_cast<int64_t>(mPlan.size);
        int64_t const at
            = offset + (where == trt::SeekPosition::kSET ? 0 : where == trt::SeekPosition::kCUR ? mAt : end);
        if (at < 0 || at > end)
        {
            return false;
        }
        mAt = at;
        return true;
    }

private:
    RatplusPlan const& mPlan;
    int64_t mAt{0};
};

//! An engine and what its contexts are made with.
struct Engine
{
    std::unique_ptr<trt::ICudaEngine> engine;
#if RATPLUS_RTX
    std::unique_ptr<trt::IRuntimeCache> cache;
    std::unique_ptr<trt::IRuntimeConfig> config;
#endif
};

int32_t engineNew(void* runtime, RatplusPlan const* plan, void** out, RatplusText text) noexcept
{
    return guarded(text, [&] {
        auto& from = *static_cast<trt::IRuntime*>(runtime);
        from.setEngineHostCodeAllowed(plan->hostCode != 0);
        Reader reader{*plan};
        auto made = std::make_unique<Engine>();
        made->engine.reset(from.deserializeCudaEngine(reader));
        expect(made->engine.get(), "IRuntime::deserializeCudaEngine");
#if RATPLUS_RTX
        made->config.reset(made->engine->createRuntimeConfig());
        trt::IRuntimeConfig& config = expect(made->config.get(), "ICudaEngine::createRuntimeConfig");
        config.setExecutionContextAllocationStrategy(trt::ExecutionContextAllocationStrategy::kUSER_MANAGED);
        made->cache.reset(config.createRuntimeCache());
        trt::IRuntimeCache& cache = expect(made->cache.get(), "IRuntimeConfig::createRuntimeCache");
        // Another machine's, or damaged, is left alone: everything is compiled anew.
        static_cast<void>(plan->cacheSize > 0 && cache.deserialize(plan->cache, plan->cacheSize));
        if (!config.setRuntimeCache(cache))
        {
            throw std::runtime_error("IRuntimeConfig::setRuntimeCache failed");
        }
#endif
        *out = made.release();
    });
}

//! Those that were not given, or belong to some that were not, in backticks.
std::string missingWeights(trt::IRefitter& refitter)
{
    std::vector<char const*> names(std::max(0, refitter.getMissingWeights(0, nullptr)));
    refitter.getMissingWeights(static_cast<int32_t>(names.size()), names.data());
    std::string text;
    for (char const* name : names)
    {
        text += std::string{text.empty() ? "" : ", "} + "`" + (name == nullptr ? "" : name) + "`";
    }
    return text;
}

int32_t engineRefit(RatplusSymbols const* symbols, void* logger, void* engine, RatplusModel const* model,
    RatplusText text) noexcept
{
    return guarded(text, [&] {
        using Create = void* (*) (void*, void*, int32_t);
        auto const create = reinterpret_cast<Create>(symbols->createRefitter);
        auto const createParser = reinterpret_cast<Create>(symbols->createParserRefitter);
        auto& log = *static_cast<trt::ILogger*>(static_cast<Logger*>(logger));
        std::unique_ptr<trt::IRefitter> const refitter{static_cast<trt::IRefitter*>(
            create(static_cast<Engine*>(engine)->engine.get(), &log, NV_TENSORRT_VERSION))};
        trt::IRefitter& of = expect(refitter.get(), "createInferRefitter");
        std::unique_ptr<onnx::IParserRefitter> const parser{
            static_cast<onnx::IParserRefitter*>(createParser(&of, &log, NV_ONNX_PARSER_VERSION))};
        bool const read = expect(parser.get(), "createNvOnnxParserRefitter")
                              .refitFromBytes(model->data, model->size, model->path);
        std::string const missing = missingWeights(of);
        if (!missing.empty())
        {
            throw std::runtime_error("weights that the model was expected to have are missing: " + missing);
        }
        if (!read)
        {
            throw std::runtime_error(parserErrors(*parser));
        }
        if (!of.refitCudaEngine())
        {
            throw std::runtime_error("IRefitter::refitCudaEngine failed");
        }
    });
}

int32_t engineInspect(void* engine, RatplusLog take, void* user, RatplusText text) noexcept
{
    return guarded(text, [&] {
        auto const& of = *static_cast<Engine*>(engine)->engine;
        std::unique_ptr<trt::IEngineInspector> inspector{of.createEngineInspector()};
        auto const format = trt::LayerInformationFormat::kJSON;
        char const* json
            = expect(inspector.get(), "ICudaEngine::createEngineInspector").getEngineInformation(format);
        take(user, 0, &expect(json, "IEngineInspector::getEngineInformation"));
    });
}

int64_t engineScratch(void* engine, int32_t profile) noexcept
{
    return static_cast<Engine*>(engine)->engine->getDeviceMemorySizeForProfileV2(profile);
}

int32_t engineCache([[maybe_unused]] void* engine, RatplusBytes* out, RatplusText text) noexcept
{
    return guarded(text, [&] {
        *out = {};
#if RATPLUS_RTX
        give(*out, expect(static_cast<Engine*>(engine)->cache->serialize(), "IRuntimeCache::serialize"));
#endif
    });
}

void engineFree(void* engine) noexcept
{
    delete static_cast<Engine*>(engine);
}

int32_t contextNew(void* engine, RatplusContextRequest const* request, void** out, RatplusText text) noexcept
{
    return guarded(text, [&] {
        auto& from = *static_cast<Engine*>(engine);
#if RATPLUS_RTX
        auto const strategy = request->graph != 0 ? trt::CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE
                                                  : trt::CudaGraphStrategy::kDISABLED;
        if (!from.config->setCudaGraphStrategy(strategy))
        {
            throw std::runtime_error("IRuntimeConfig::setCudaGraphStrategy failed");
        }
        std::unique_ptr<trt::IExecutionContext> made{from.engine->createExecutionContext(from.config.get())};
#else
        std::unique_ptr<trt::IExecutionContext> made{
            from.engine->createExecutionContext(trt::ExecutionContextAllocationStrategy::kUSER_MANAGED)};
#endif
        trt::IExecutionContext& context = expect(made.get(), "ICudaEngine::createExecutionContext");
        bool chosen = false;
        for (int32_t i = 0; i < request->inputCount; ++i)
        {
            RatplusTensor const& input = request->inputs[i];
            trt::Dims const known = from.engine->getTensorShape(input.name);
            if (std::find(known.d, known.d + std::max(known.nbDims, 0), -1) == known.d + std::max(known.nbDims, 0))
            {
                continue;
            }
            if (!chosen
                && !context.setOptimizationProfileAsync(
                    request->profile, static_cast<cudaStream_t>(request->stream)))
            {
                throw std::runtime_error(
                    "IExecutionContext::setOptimizationProfileAsync refused " + std::to_string(request->profile));
            }
            chosen = true;
            if (!context.setInputShape(input.name, shapeOf(input)))
            {
                throw std::runtime_error(std::string{"IExecutionContext::setInputShape refused that of `"}
                    + input.name + "`");
            }
        }
        *out = made.release();
    });
}

int32_t contextTensorCount(void* context) noexcept
{
    return static_cast<trt::IExecutionContext*>(context)->getEngine().getNbIOTensors();
}

int32_t contextTensor(void* context, int32_t index, RatplusTensor* out) noexcept
{
    auto const& of = *static_cast<trt::IExecutionContext*>(context);
    trt::ICudaEngine const& engine = of.getEngine();
    char const* name = engine.getIOTensorName(index);
    if (name == nullptr)
    {
        return 1;
    }
    bool const isInput = engine.getTensorIOMode(name) == trt::TensorIOMode::kINPUT;
    describe(*out, name, isInput, engine.getTensorDataType(name), of.getTensorShape(name));
    return 0;
}

void contextScratch(void* context, void* address, int64_t size) noexcept
{
    static_cast<trt::IExecutionContext*>(context)->setDeviceMemoryV2(address, size);
}

int32_t contextBind(void* context, char const* tensor, void* address) noexcept
{
    return static_cast<trt::IExecutionContext*>(context)->setTensorAddress(tensor, address) ? 0 : 1;
}

int32_t contextEnqueue(void* context, void* stream) noexcept
{
    return static_cast<trt::IExecutionContext*>(context)->enqueueV3(static_cast<cudaStream_t>(stream)) ? 0 : 1;
}

void contextFree(void* context) noexcept
{
    delete static_cast<trt::IExecutionContext*>(context);
}

RatplusTable const kTABLE{
    RATPLUS_RTX,
    NV_TENSORRT_MAJOR,
    NV_TENSORRT_MINOR,
    &loggerNew,
    &loggerFree,
    &networkNew,
    &networkTensorCount,
    &networkTensor,
    &networkCapabilities,
    &networkBuild,
    &networkTimingCache,
    &networkFree,
    &bytesFree,
    &runtimeNew,
    &runtimeCheck,
    &runtimeFree,
    &engineNew,
    &engineRefit,
    &engineInspect,
    &engineScratch,
    &engineCache,
    &engineFree,
    &contextNew,
    &contextTensorCount,
    &contextTensor,
    &contextScratch,
    &contextBind,
    &contextEnqueue,
    &contextFree,
};

} // namespace RATPLUS_NAMESPACE

extern "C" RatplusTable const* RATPLUS_ENTRY() noexcept
{
    return &RATPLUS_NAMESPACE::kTABLE;
}
