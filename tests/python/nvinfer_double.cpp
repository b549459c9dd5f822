// A stand-in for TensorRT's library, or for that of TensorRT for RTX: real interfaces, made-up
// model. A plan is a text that lists tensors. The state is one number a slot, in the first element
// of every state tensor; logits point at it. nvinfer_double.py generates double_base.h.

#include <cstdint>
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
    Dims shape{};
};

ILogger* gLogger = nullptr;

class ContextImpl final : public apiv::DoubleExecutionContext
{
public:
    explicit ContextImpl(std::vector<Listed> const& tensors)
        : mTensors{tensors}
    {
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
        Dims const chunk = find("input_ids").shape;
        Dims const logits = find("logits").shape;
        int64_t const vocabulary = logits.d[2];
        auto const* ids = reinterpret_cast<int64_t const*>(mAddresses["input_ids"]);
        auto const* past = reinterpret_cast<int64_t const*>(mAddresses["past_length"]);
        auto const* valid = reinterpret_cast<int64_t const*>(mAddresses["seq_length"]);
        auto* out = reinterpret_cast<float*>(mAddresses["logits"]);
        for (int64_t slot = 0; slot < chunk.d[0]; ++slot)
        {
            float state = -1;
            for (Listed const& tensor : mTensors)
            {
                std::string const prefix = "past_key_values";
                if (tensor.name.compare(0, prefix.size(), prefix) != 0)
                {
                    continue;
                }
                float const found = at(mAddresses[tensor.name], tensor.shape, slot);
                if (past[slot] != 0 && state >= 0 && found != state)
                {
                    return fail("state tensors differ at " + tensor.name);
                }
                state = past[slot] == 0 ? 0 : found;
            }
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
                state = static_cast<float>((31 * static_cast<int64_t>(state) + token + 7 * (past[slot] + i)) % 1009);
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
                float& to = at(mAddresses[tensor.name], tensor.shape, slot);
                to = valid[slot] == 0 ? at(mAddresses[from], tensor.shape, slot) : state;
            }
        }
        return true;
    }

private:
    static float& at(char* tensor, Dims const& shape, int64_t slot)
    {
        int64_t stride = 1;
        for (int32_t i = 1; i < shape.nbDims; ++i)
        {
            stride *= shape.d[i];
        }
        return reinterpret_cast<float*>(tensor)[slot * stride];
    }

    Listed const& find(std::string const& name) const
    {
        for (Listed const& tensor : mTensors)
        {
            if (tensor.name == name)
            {
                return tensor;
            }
        }
        std::abort();
    }

    bool fail(std::string const& message) const
    {
        gLogger->log(ILogger::Severity::kERROR, message.c_str());
        return false;
    }

    std::vector<Listed> mTensors;
    std::map<std::string, char*> mAddresses;
};

struct Context final : IExecutionContext
{
    explicit Context(std::vector<Listed> const& tensors)
        : impl{tensors}
    {
        mImpl = &impl;
    }
    ContextImpl impl;
};

class EngineImpl final : public apiv::DoubleCudaEngine
{
public:
    int32_t getNbIOTensors() const noexcept override
    {
        return static_cast<int32_t>(tensors.size());
    }
    char const* getIOTensorName(int32_t index) const noexcept override
    {
        return tensors[index].name.c_str();
    }
    TensorIOMode getTensorIOMode(char const* name) const noexcept override
    {
        return find(name).input ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
    }
    DataType getTensorDataType(char const* name) const noexcept override
    {
        return find(name).type;
    }
    Dims getTensorShape(char const* name) const noexcept override
    {
        return find(name).shape;
    }
    IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy) noexcept override
    {
        return new Context{tensors};
    }
#if DOUBLE_IN_PLACE
    char const* getAliasedInputTensor(char const* name) const noexcept override
    {
        std::string const prefix = "present";
        if (std::strncmp(name, prefix.c_str(), prefix.size()) != 0)
        {
            return nullptr;
        }
        return find("past_key_values" + std::string{name + prefix.size()}).name.c_str();
    }
#endif

    Listed const& find(std::string const& name) const
    {
        for (Listed const& tensor : tensors)
        {
            if (tensor.name == name)
            {
                return tensor;
            }
        }
        std::abort();
    }

    std::vector<Listed> tensors;
};

struct Engine final : ICudaEngine
{
    Engine()
    {
        mImpl = &impl;
    }
    EngineImpl impl;
};

class RuntimeImpl final : public apiv::DoubleRuntime
{
public:
    ICudaEngine* deserializeCudaEngine(void const* plan, std::size_t size) noexcept override
    {
        std::istringstream lines{std::string{static_cast<char const*>(plan), size}};
        std::string word;
        lines >> word;
        if (word != "double")
        {
            gLogger->log(ILogger::Severity::kERROR, "not a plan of the double");
            return nullptr;
        }
        auto* engine = new Engine;
        while (lines >> word)
        {
            Listed tensor;
            int32_t type = 0;
            tensor.input = word == "input";
            lines >> tensor.name >> type >> tensor.shape.nbDims;
            tensor.type = type == 3 ? DataType::kINT64 : DataType::kFLOAT;
            for (int32_t i = 0; i < tensor.shape.nbDims; ++i)
            {
                lines >> tensor.shape.d[i];
            }
            engine->impl.tensors.push_back(tensor);
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
};

struct Runtime final : IRuntime
{
    Runtime()
    {
        mImpl = &impl;
    }
    RuntimeImpl impl;
};

} // namespace

extern "C" void* createInferRuntime_INTERNAL(void* logger, int32_t version) noexcept
{
    gLogger = static_cast<ILogger*>(logger);
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
