// A stand-in for TensorRT's library, or for that of TensorRT for RTX: real interfaces, made-up
// model. A plan is a text that lists tensors, profiles and layers. The state of a slot is two numbers: the
// running one in the first element of every recurrent tensor, and in that of every cache what it was after the
// first token, written once as a row is; logits point at what both make. nvinfer_double.py generates
// double_base.h. RATPLUS_DOUBLE_LOG names a file that says what was asked for.

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "double_base.h"

namespace
{

using namespace nvinfer1;

struct Listed
{
    std::string name;
    bool input{};
    DataType type{};
    //! -1 where open.
    Dims shape{};
};

//! Shapes of open inputs by name.
using Profile = std::map<std::string, Dims>;

struct Plan
{
    std::vector<Listed> tensors;
    std::vector<Profile> profiles;
    std::string layers;
    //! Checksums by name of those that it was built with and does not have.
    std::map<std::string, std::string> stripped;
};

ILogger* gLogger = nullptr;

bool fail(std::string const& message)
{
    gLogger->log(ILogger::Severity::kERROR, message.c_str());
    return false;
}

void note(std::string const& line)
{
    if (char const* path = std::getenv("RATPLUS_DOUBLE_LOG"))
    {
        std::FILE* file = std::fopen(path, "a");
        std::fprintf(file, "%s\n", line.c_str());
        std::fclose(file);
    }
}

//! One of TensorRT's objects around what does the work.
template <typename Interface, typename Impl>
struct Made final : Interface
{
    template <typename... Parts>
    explicit Made(Parts&&... parts)
        : impl{std::forward<Parts>(parts)...}
    {
        this->mImpl = &impl;
    }
    Impl impl;
};

class Bytes final : public apiv::DoubleHostMemory
{
public:
    explicit Bytes(std::string const& text)
        : mText{text}
    {
    }
    void* data() const noexcept override
    {
        return const_cast<char*>(mText.data());
    }
    std::size_t size() const noexcept override
    {
        return mText.size();
    }

private:
    std::string mText;
};

template <typename Range>
auto& named(Range& list, std::string const& name)
{
    for (auto& one : list)
    {
        if (one.name == name)
        {
            return one;
        }
    }
    std::abort();
}

bool isOpen(Dims const& shape)
{
    return std::count(shape.d, shape.d + shape.nbDims, -1) > 0;
}

//! What is written beside the state by a run at a profile.
int64_t scratchBytes(Plan const& plan, int32_t profile)
{
    return profile < static_cast<int32_t>(plan.profiles.size())
        ? 1000 * plan.profiles[profile].at("input_ids").d[0] * plan.profiles[profile].at("input_ids").d[1]
        : 500;
}

class ContextImpl final : public apiv::DoubleExecutionContext
{
public:
    ContextImpl(ICudaEngine const& engine, Plan const& plan)
        : mEngine{engine}
        , mPlan{plan}
        , mTensors{plan.tensors}
    {
    }

    ICudaEngine const& getEngine() const noexcept override
    {
        return mEngine;
    }

    bool setOptimizationProfileAsync(int32_t profile, cudaStream_t stream) noexcept override
    {
        mProfile = profile;
        note("profile " + std::to_string(profile));
        return stream != nullptr && profile < static_cast<int32_t>(mPlan.profiles.size());
    }

    bool setInputShape(char const* name, Dims const& shape) noexcept override
    {
        Dims const wanted = mPlan.profiles[mProfile].at(name);
        if (wanted.nbDims != shape.nbDims || !std::equal(shape.d, shape.d + shape.nbDims, wanted.d))
        {
            return fail(std::string{"outside of the profile: "} + name);
        }
        named(mTensors, name).shape = shape;
        return true;
    }

    Dims getTensorShape(char const* name) const noexcept override
    {
        Dims shape = named(mTensors, name).shape;
        Dims const chunk = named(mTensors, "input_ids").shape;
        for (int32_t i = 0; i < 2 && i < shape.nbDims; ++i)
        {
            shape.d[i] = shape.d[i] == -1 ? chunk.d[i] : shape.d[i];
        }
        return shape;
    }

    void setDeviceMemoryV2(void* memory, int64_t size) noexcept override
    {
        note("scratch " + std::to_string(reinterpret_cast<std::uintptr_t>(memory)) + " " + std::to_string(size));
        mScratch = {static_cast<char*>(memory), size};
    }

    bool setTensorAddress(char const* name, void* address) noexcept override
    {
        mAddresses[name] = static_cast<char*>(address);
        return reinterpret_cast<std::uintptr_t>(address) % 16 == 0;
    }

    bool enqueueV3(cudaStream_t) noexcept override
    {
        for (Listed const& tensor : mTensors)
        {
            if (mAddresses[tensor.name] == nullptr)
            {
                return fail("unbound: " + tensor.name);
            }
        }
        int64_t const scratch = scratchBytes(mPlan, mProfile);
        if (mScratch.first == nullptr || mScratch.second < scratch)
        {
            return fail("scratch memory of " + std::to_string(mScratch.second) + " bytes");
        }
        mScratch.first[scratch - 1] = 1;
        Dims const chunk = getTensorShape("input_ids");
        int64_t const vocabulary = getTensorShape("logits").d[2];
        auto const* ids = reinterpret_cast<int64_t const*>(mAddresses["input_ids"]);
        auto const* past = reinterpret_cast<int64_t const*>(mAddresses["past_length"]);
        auto const* valid = reinterpret_cast<int64_t const*>(mAddresses["seq_length"]);
        auto* out = reinterpret_cast<float*>(mAddresses["logits"]);
        for (int64_t slot = 0; slot < chunk.d[0]; ++slot)
        {
            // Of the caches, and running.
            float states[] = {-1, -1};
            for (Listed const& tensor : mTensors)
            {
                std::string const prefix = "past_key_values";
                if (tensor.name.compare(0, prefix.size(), prefix) != 0)
                {
                    continue;
                }
                float& state = states[isRunning(tensor.name)];
                float const found = at(tensor.name, slot);
                if (past[slot] != 0 && state >= 0 && found != state)
                {
                    return fail("state tensors differ at " + tensor.name);
                }
                state = past[slot] == 0 ? 0 : found;
            }
            auto& [first, state] = states;
            for (int64_t i = 0; i < chunk.d[1]; ++i)
            {
                float* row = out + (slot * chunk.d[1] + i) * vocabulary;
                std::memset(row, 0, sizeof(float) * vocabulary);
                if (i >= valid[slot])
                {
                    continue;
                }
                int64_t const token = ids[slot * chunk.d[1] + i];
                if (token == 13)
                {
                    return fail("a planted failure");
                }
                int64_t const position = past[slot] + i;
                int64_t const sum = 31 * static_cast<int64_t>(state) + static_cast<int64_t>(first) + token + 7 * position;
                state = static_cast<float>(sum % 1009);
                first = position == 0 ? state : first;
                row[static_cast<int64_t>(state) % vocabulary] = 1 + state;
            }
            for (Listed const& tensor : mTensors)
            {
                std::string const prefix = "present";
                if (tensor.name.compare(0, prefix.size(), prefix) != 0)
                {
                    continue;
                }
                std::string const from = "past_key_values" + tensor.name.substr(prefix.size());
                if ((mAddresses[tensor.name] == mAddresses[from]) != DOUBLE_IN_PLACE)
                {
                    return fail("past and present of " + tensor.name);
                }
                // An idle slot keeps its state.
                at(tensor.name, slot) = valid[slot] == 0 ? at(from, slot) : states[isRunning(tensor.name)];
            }
        }
        return true;
    }

private:
    static bool isRunning(std::string const& name)
    {
        return name.find(".recurrent_") != std::string::npos;
    }

    float& at(std::string const& name, int64_t slot)
    {
        Dims const shape = getTensorShape(name.c_str());
        int64_t stride = 1;
        for (int32_t i = 1; i < shape.nbDims; ++i)
        {
            stride *= shape.d[i];
        }
        return reinterpret_cast<float*>(mAddresses[name])[slot * stride];
    }

    ICudaEngine const& mEngine;
    Plan const& mPlan;
    std::vector<Listed> mTensors;
    std::map<std::string, char*> mAddresses;
    std::pair<char*, int64_t> mScratch{};
    int32_t mProfile{0};
};

class InspectorImpl final : public apiv::DoubleEngineInspector
{
public:
    explicit InspectorImpl(Plan const& plan)
        : mPlan{plan}
    {
    }
    char const* getEngineInformation(LayerInformationFormat format) const noexcept override
    {
        return format == LayerInformationFormat::kJSON ? mPlan.layers.c_str() : nullptr;
    }

private:
    Plan const& mPlan;
};

#if !DOUBLE_IN_PLACE
//! Holds one line for each profile that was compiled.
class CacheImpl final : public apiv::DoubleRuntimeCache
{
public:
    IHostMemory* serialize() const noexcept override
    {
        return new Made<IHostMemory, Bytes>{"cache\n" + compiled};
    }
    bool deserialize(void const* blob, std::size_t size) noexcept override
    {
        std::string const text{static_cast<char const*>(blob), size};
        bool const known = text.compare(0, 6, "cache\n") == 0;
        compiled = known ? text.substr(6) : compiled;
        return known;
    }
    std::string compiled;
};
using Cache = Made<IRuntimeCache, CacheImpl>;

class ConfigImpl final : public apiv::DoubleRuntimeConfig
{
public:
    void setExecutionContextAllocationStrategy(ExecutionContextAllocationStrategy chosen) noexcept override
    {
        strategy = chosen;
    }
    IRuntimeCache* createRuntimeCache() const noexcept override
    {
        return new Cache;
    }
    bool setRuntimeCache(IRuntimeCache const& chosen) noexcept override
    {
        cache = const_cast<Cache*>(static_cast<Cache const*>(&chosen));
        return true;
    }
    bool setCudaGraphStrategy(CudaGraphStrategy chosen) noexcept override
    {
        graph = chosen;
        return true;
    }
    ExecutionContextAllocationStrategy strategy{};
    CudaGraphStrategy graph{};
    Cache* cache{};
};
using Config = Made<IRuntimeConfig, ConfigImpl>;
#endif

class EngineImpl final : public apiv::DoubleCudaEngine
{
public:
    int32_t getNbIOTensors() const noexcept override
    {
        return static_cast<int32_t>(plan.tensors.size());
    }
    char const* getIOTensorName(int32_t index) const noexcept override
    {
        return plan.tensors[index].name.c_str();
    }
    TensorIOMode getTensorIOMode(char const* name) const noexcept override
    {
        return named(plan.tensors, name).input ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
    }
    DataType getTensorDataType(char const* name) const noexcept override
    {
        return named(plan.tensors, name).type;
    }
    Dims getTensorShape(char const* name) const noexcept override
    {
        return named(plan.tensors, name).shape;
    }
    int64_t getDeviceMemorySizeForProfileV2(int32_t profile) const noexcept override
    {
        return scratchBytes(plan, profile);
    }
    IEngineInspector* createEngineInspector() const noexcept override
    {
        return new Made<IEngineInspector, InspectorImpl>{plan};
    }
#if DOUBLE_IN_PLACE
    IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept override
    {
        return context(strategy);
    }
#else
    IRuntimeConfig* createRuntimeConfig() noexcept override
    {
        return new Config;
    }
    IExecutionContext* createExecutionContextWithRuntimeConfig(IRuntimeConfig* config) noexcept override
    {
        auto const& chosen = static_cast<Config*>(config)->impl;
        bool const graph = chosen.graph == CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE;
        std::string const kernel = graph ? "captured\n" : "enqueued\n";
        std::string& compiled = chosen.cache->impl.compiled;
        if (compiled.find(kernel) == std::string::npos)
        {
            note("compiled " + std::string{graph ? "captured" : "enqueued"});
            compiled += kernel;
        }
        return context(chosen.strategy);
    }
#endif
    IExecutionContext* context(ExecutionContextAllocationStrategy strategy)
    {
        if (strategy != ExecutionContextAllocationStrategy::kUSER_MANAGED)
        {
            fail("a context with scratch memory of its own");
            return nullptr;
        }
        if (!plan.stripped.empty())
        {
            fail("a context of a plan without its weights");
            return nullptr;
        }
        note("context");
        return new Made<IExecutionContext, ContextImpl>{*engine, plan};
    }

    Plan plan;
    ICudaEngine* engine{};
};
using Engine = Made<ICudaEngine, EngineImpl>;

Listed listed(std::istream& words, bool input)
{
    Listed tensor;
    int32_t type = 0;
    tensor.input = input;
    words >> tensor.name >> type >> tensor.shape.nbDims;
    tensor.type = type == 3 ? DataType::kINT64 : DataType::kFLOAT;
    for (int32_t i = 0; i < tensor.shape.nbDims; ++i)
    {
        words >> tensor.shape.d[i];
    }
    return tensor;
}

class RuntimeImpl final : public apiv::DoubleRuntime
{
public:
    void setEngineHostCodeAllowed(bool allowed) noexcept override
    {
        note(std::string{"host code "} + (allowed ? "allowed" : "refused"));
    }

    //! Twice: to the host a few bytes at a time, then to memory of the GPU.
    ICudaEngine* deserializeCudaEngineV2(IStreamReaderV2& reader) noexcept override
    {
        std::string text;
        char part[100];
        for (int64_t count = 1; count > 0; text.append(part, count))
        {
            count = reader.read(part, sizeof part, nullptr);
            if (count < 0)
            {
                return nullptr;
            }
        }
        std::string again(text.size(), '\0');
        if (!reader.seek(-static_cast<int64_t>(text.size()), SeekPosition::kEND)
            || !throughDevice(reader, again) || again != text || reader.seek(1, SeekPosition::kEND))
        {
            fail("the plan is not read as it is");
            return nullptr;
        }
        std::istringstream lines{text};
        std::string word;
        lines >> word;
        if (word != "double")
        {
            fail("not a plan of the double");
            return nullptr;
        }
        auto* engine = new Engine;
        engine->impl.engine = engine;
        Plan& plan = engine->impl.plan;
        while (lines >> word)
        {
            if (word == "input" || word == "output")
            {
                plan.tensors.push_back(listed(lines, word == "input"));
            }
            else if (word == "profile")
            {
                plan.profiles.emplace_back();
            }
            else if (word == "sizes")
            {
                Listed const input = listed(lines, true);
                plan.profiles.back()[input.name] = input.shape;
            }
            else if (word == "stripped")
            {
                lines >> word >> plan.stripped[word];
            }
            else if (word == "layers")
            {
                std::getline(lines, plan.layers);
            }
            else
            {
                std::getline(lines, word);
            }
        }
        return engine;
    }
#if DOUBLE_IN_PLACE
    IPluginRegistry& getPluginRegistry() noexcept override
    {
        return registry;
    }
    DoubleRegistry registry;
#else
    int64_t getEngineHeaderSize() const noexcept override
    {
        return 6;
    }
    EngineValidity getEngineValidity(void const* plan, int64_t, uint64_t* diagnostics) const noexcept override
    {
        bool const unfit = std::memcmp(plan, "unfit", 5) == 0;
        *diagnostics = unfit ? 2 : 0;
        return unfit ? EngineValidity::kINVALID : EngineValidity::kVALID;
    }
#endif

private:
    static bool throughDevice(IStreamReaderV2& reader, std::string& text)
    {
        void* const driver = dlopen("libcuda.so.1", RTLD_NOW);
        auto const allocate = reinterpret_cast<int32_t (*)(uint64_t*, size_t)>(dlsym(driver, "cuMemAlloc_v2"));
        auto const fetch = reinterpret_cast<int32_t (*)(void*, uint64_t, size_t)>(dlsym(driver, "cuMemcpyDtoH_v2"));
        uint64_t address = 0;
        auto const size = static_cast<int64_t>(text.size());
        return allocate(&address, text.size()) == 0
            && reader.read(reinterpret_cast<void*>(address), size + 7, nullptr) == size
            && fetch(text.data(), address, text.size()) == 0;
    }
};

} // namespace

extern "C" void* createInferRuntime_INTERNAL(void* logger, int32_t version) noexcept
{
    gLogger = static_cast<ILogger*>(logger);
    using Runtime = Made<IRuntime, RuntimeImpl>;
    return version == NV_TENSORRT_VERSION ? static_cast<IRuntime*>(new Runtime) : nullptr;
}

extern "C" int32_t getInferLibMajorVersion() noexcept { return NV_TENSORRT_MAJOR; }
extern "C" int32_t getInferLibMinorVersion() noexcept { return NV_TENSORRT_MINOR; }
extern "C" int32_t getInferLibPatchVersion() noexcept { return NV_TENSORRT_PATCH; }
extern "C" int32_t getInferLibBuildVersion() noexcept { return NV_TENSORRT_BUILD; }

// As the RAT+ plugin library does; the same file stands in for both.
extern "C" __attribute__((visibility("default"))) std::size_t RatplusTakeDeviceError(char*, std::size_t)
{
    return 0;
}

#if DOUBLE_IN_PLACE
#include "nvinfer_double_builder.h"
#endif
