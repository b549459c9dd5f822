// The stand-in's builder and ONNX parser: inputs, outputs and their dimensions are the model's, layers
// one plugin a state. RATPLUS_DOUBLE_COPIES has it put a copy before the last one. A stripped plan lists the
// model's weights with checksums, and has none until those are found again in the model's own files;
// RATPLUS_DOUBLE_FORGETS names one that the parser does not find.

namespace
{

//! Just enough of protocol buffers to read a model's inputs and outputs.
struct Message
{
    char const* at{};
    char const* end{};

    uint64_t number()
    {
        uint64_t value = 0;
        for (int32_t shift = 0; at < end; shift += 7)
        {
            auto const byte = static_cast<unsigned char>(*at++);
            value |= static_cast<uint64_t>(byte & 127) << shift;
            if (byte < 128)
            {
                break;
            }
        }
        return value;
    }

    //! Calls `each(field, number, part)` for every field.
    template <typename Each>
    void read(Each each)
    {
        while (at < end)
        {
            uint64_t const key = number();
            if (key % 8 == 0)
            {
                each(key / 8, number(), Message{});
            }
            else if (key % 8 == 2)
            {
                uint64_t const size = number();
                each(key / 8, 0, Message{at, at + size});
                at += size;
            }
            else
            {
                at += key % 8 == 1 ? 8 : 4;
            }
        }
    }

    std::string text() const
    {
        return {at, end};
    }
};

//! As the plan has it: f32 0, f16 1, bf16 2, i64 3.
DataType elementType(uint64_t onnx)
{
    return onnx == 7 ? DataType::kINT64 : onnx == 10 ? DataType::kHALF : onnx == 16 ? DataType::kBF16 : DataType::kFLOAT;
}

Listed valueInfo(Message info, bool input)
{
    Listed tensor;
    tensor.input = input;
    info.read([&](uint64_t field, uint64_t, Message part) {
        if (field == 1)
        {
            tensor.name = part.text();
            return;
        }
        part.read([&](uint64_t, uint64_t, Message type) {
            type.read([&](uint64_t field, uint64_t number, Message shape) {
                if (field == 1)
                {
                    tensor.type = elementType(number);
                    return;
                }
                shape.read([&](uint64_t, uint64_t, Message dim) {
                    int64_t& size = tensor.shape.d[tensor.shape.nbDims++] = -1;
                    dim.read([&](uint64_t field, uint64_t number, Message) {
                        size = field == 1 ? static_cast<int64_t>(number) : size;
                    });
                });
            });
        });
    });
    return tensor;
}

//! Sizes of the parts of a file, and their checksum.
std::string checksum(std::string const& path, uint64_t offset, uint64_t length)
{
    std::string part(length, '\0');
    std::FILE* file = std::fopen(path.c_str(), "rb");
    bool const whole = file != nullptr && std::fseek(file, static_cast<long>(offset), SEEK_SET) == 0
        && std::fread(part.data(), 1, length, file) == length;
    if (file != nullptr)
    {
        std::fclose(file);
    }
    uint64_t sum = 14695981039346656037U;
    for (char const byte : part)
    {
        sum = (sum ^ static_cast<unsigned char>(byte)) * 1099511628211U;
    }
    return whole ? std::to_string(length) + ":" + std::to_string(sum) : "unreadable";
}

//! Checksums by name of the weights that lie in a file beside `path`.
std::map<std::string, std::string> externalWeights(void const* model, std::size_t size, std::string const& path)
{
    std::map<std::string, std::string> found;
    auto const* start = static_cast<char const*>(model);
    Message{start, start + size}.read([&](uint64_t field, uint64_t, Message graph) {
        if (field != 7)
        {
            return;
        }
        graph.read([&](uint64_t field, uint64_t, Message tensor) {
            if (field != 5)
            {
                return;
            }
            std::string name;
            std::map<std::string, std::string> entries;
            tensor.read([&](uint64_t field, uint64_t, Message part) {
                if (field == 8)
                {
                    name = part.text();
                }
                else if (field == 13)
                {
                    std::string words[2];
                    part.read([&](uint64_t field, uint64_t, Message word) { words[field - 1] = word.text(); });
                    entries[words[0]] = words[1];
                }
            });
            if (!entries.empty())
            {
                std::string const file = path.substr(0, path.rfind('/') + 1) + entries["location"];
                found[name] = checksum(file, std::stoull(entries["offset"]), std::stoull(entries["length"]));
            }
        });
    });
    return found;
}

class TensorImpl final : public apiv::DoubleTensor
{
public:
    explicit TensorImpl(Listed const& tensor)
        : listed{tensor}
    {
    }
    char const* getName() const noexcept override
    {
        return listed.name.c_str();
    }
    Dims getDimensions() const noexcept override
    {
        return listed.shape;
    }
    DataType getType() const noexcept override
    {
        return listed.type;
    }
    Listed listed;
};
using TensorOfNetwork = Made<ITensor, TensorImpl>;

class NetworkImpl final : public apiv::DoubleNetworkDefinition
{
public:
    int32_t getNbInputs() const noexcept override
    {
        return static_cast<int32_t>(inputs.size());
    }
    int32_t getNbOutputs() const noexcept override
    {
        return static_cast<int32_t>(outputs.size());
    }
    ITensor* getInput(int32_t index) const noexcept override
    {
        return inputs[index];
    }
    ITensor* getOutput(int32_t index) const noexcept override
    {
        return outputs[index];
    }
    std::vector<TensorOfNetwork*> inputs, outputs;
    std::map<std::string, std::string> weights;
};
using NetworkOfModel = Made<INetworkDefinition, NetworkImpl>;

class ProfileImpl final : public apiv::DoubleOptimizationProfile
{
public:
    bool setDimensions(char const* name, OptProfileSelector, Dims const& shape) noexcept override
    {
        // One size: minimum, optimum and maximum are the same.
        Dims const& known = shapes.emplace(name, shape).first->second;
        times += 1;
        return known.nbDims == shape.nbDims && std::equal(shape.d, shape.d + shape.nbDims, known.d);
    }
    Profile shapes;
    std::size_t times{0};
};
using ProfileOfEngine = Made<IOptimizationProfile, ProfileImpl>;

//! A text, to which every plan adds a word.
class TimingImpl final : public apiv::DoubleTimingCache
{
public:
    explicit TimingImpl(std::string const& text)
        : times{text}
    {
    }
    IHostMemory* serialize() const noexcept override
    {
        return new Made<IHostMemory, Bytes>{times + " measured"};
    }
    bool combine(ITimingCache const& other, bool) noexcept override;
    std::string times;
};
using TimingOfDevice = Made<ITimingCache, TimingImpl>;

bool TimingImpl::combine(ITimingCache const& other, bool) noexcept
{
    std::string const& more = static_cast<TimingOfDevice const&>(other).impl.times;
    note("timing cache `" + more + "`");
    times += more;
    return true;
}

class BuilderConfigImpl final : public apiv::DoubleBuilderConfig
{
public:
    void clearFlag(BuilderFlag flag) noexcept override
    {
        flags &= ~(1U << static_cast<uint32_t>(flag));
    }
    void setFlag(BuilderFlag flag) noexcept override
    {
        flags |= 1U << static_cast<uint32_t>(flag);
    }
    bool getFlag(BuilderFlag flag) const noexcept override
    {
        return (flags >> static_cast<uint32_t>(flag) & 1) == 1;
    }
    void setPreviewFeature(PreviewFeature, bool) noexcept override {}
    void setMemoryPoolLimit(MemoryPoolType pool, std::size_t size) noexcept override
    {
        settings += pool == MemoryPoolType::kWORKSPACE ? " workspace=" + std::to_string(size) : " another pool";
    }
    void setBuilderOptimizationLevel(int32_t level) noexcept override
    {
        settings += " level=" + std::to_string(level);
    }
    void setHardwareCompatibilityLevel(HardwareCompatibilityLevel level) noexcept override
    {
        settings += " hardware=" + std::to_string(static_cast<int32_t>(level));
    }
    void setProfilingVerbosity(ProfilingVerbosity verbosity) noexcept override
    {
        detailed = verbosity == ProfilingVerbosity::kDETAILED;
    }
    ITimingCache* createTimingCache(void const* blob, std::size_t size) const noexcept override
    {
        return new TimingOfDevice{std::string(static_cast<char const*>(blob), size)};
    }
    bool setTimingCache(ITimingCache const&, bool) noexcept override
    {
        return true;
    }
    int32_t addOptimizationProfile(IOptimizationProfile const* profile) noexcept override
    {
        profiles.push_back(static_cast<ProfileOfEngine const*>(profile)->impl);
        return static_cast<int32_t>(profiles.size()) - 1;
    }
    std::vector<ProfileImpl> profiles;
    std::string settings;
    bool detailed{false};
    uint32_t flags{1U << static_cast<uint32_t>(BuilderFlag::kTF32)};
};
using ConfigOfBuilder = Made<IBuilderConfig, BuilderConfigImpl>;

class BuilderImpl final : public apiv::DoubleBuilder
{
public:
    IBuilderConfig* createBuilderConfig() noexcept override
    {
        return new ConfigOfBuilder;
    }
    INetworkDefinition* createNetworkV2(NetworkDefinitionCreationFlags) noexcept override
    {
        return new NetworkOfModel;
    }
    IOptimizationProfile* createOptimizationProfile() noexcept override
    {
        return new ProfileOfEngine;
    }
    IPluginRegistry& getPluginRegistry() noexcept override
    {
        return mRegistry;
    }
    IHostMemory* buildSerializedNetwork(INetworkDefinition& network, IBuilderConfig& config) noexcept override
    {
        auto const& of = static_cast<NetworkOfModel&>(network).impl;
        auto const& with = static_cast<ConfigOfBuilder&>(config).impl;
        std::ostringstream plan;
        plan << "double\nsettings flags=" << with.flags << with.settings << "\n";
        for (auto const* side : {&of.inputs, &of.outputs})
        {
            for (TensorOfNetwork const* tensor : *side)
            {
                write(plan, side == &of.inputs ? "input" : "output", tensor->impl.listed);
            }
        }
        for (ProfileImpl const& profile : with.profiles)
        {
            if (profile.shapes.size() != of.inputs.size() || profile.times != 3 * of.inputs.size())
            {
                fail("a profile that does not give every input its sizes");
                return nullptr;
            }
            plan << "profile\n";
            for (auto const& [name, shape] : profile.shapes)
            {
                write(plan, "sizes", {name, true, DataType::kFLOAT, shape});
            }
        }
        for (auto const& [name, sum] : of.weights)
        {
            if (with.getFlag(BuilderFlag::kSTRIP_PLAN))
            {
                plan << "stripped " << name << " " << sum << "\n";
            }
        }
        plan << "layers {\"Layers\": [";
        for (std::size_t profile = 0; profile < std::max<std::size_t>(1, with.profiles.size()); ++profile)
        {
            std::string const suffix = profile == 0 ? "" : " [profile " + std::to_string(profile) + "]";
            for (std::size_t state = 3; state < of.inputs.size(); ++state)
            {
                std::string past = of.inputs[state]->impl.listed.name + suffix;
                std::string const present = of.outputs[state - 2]->impl.listed.name + suffix;
                plan << (profile + state == 3 ? "" : ", ");
                if (!with.detailed)
                {
                    plan << "\"layer " << state << "\"";
                    continue;
                }
                bool const last = profile + 1 == with.profiles.size() && state + 1 == of.inputs.size();
                if (last && std::getenv("RATPLUS_DOUBLE_COPIES") != nullptr)
                {
                    std::string const copy = "Reformatted Input Tensor 3";
                    layer(plan, "Reformatting CopyNode for Input Tensor 3", "Reformat", past, copy);
                    plan << ", ";
                    past = copy;
                }
                layer(plan, "plugin " + std::to_string(state) + suffix, "PluginV3", past, present);
            }
        }
        plan << "], \"Bindings\": []}";
        return new Made<IHostMemory, Bytes>{plan.str()};
    }

private:
    static void layer(std::ostream& to, std::string const& name, std::string const& type, std::string const& input,
        std::string const& output)
    {
        to << "{\"Name\": \"" << name << "\", \"LayerType\": \"" << type << "\", \"Inputs\": [{\"Name\": \"" << input
           << "\", \"Format/Datatype\": \"Row major linear BF16\"}, {\"Name\": \"seq_length\"}], \"Outputs\": [{\"Name\": \""
           << output << "\"}], \"TacticValue\": \"0x0\"}";
    }

    static void write(std::ostream& to, char const* word, Listed const& tensor)
    {
        int32_t const type = tensor.type == DataType::kINT64 ? 3 : 0;
        to << word << " " << tensor.name << " " << type << " " << tensor.shape.nbDims;
        for (int32_t i = 0; i < tensor.shape.nbDims; ++i)
        {
            to << " " << tensor.shape.d[i];
        }
        to << "\n";
    }

    DoubleRegistry mRegistry;
};

class Parser final : public nvonnxparser::DoubleParser
{
public:
    explicit Parser(NetworkOfModel& network)
        : mNetwork{network}
    {
    }
    void setFlag(nvonnxparser::OnnxParserFlag) noexcept override {}
    bool parse(void const* model, size_t size, char const* path) noexcept override
    {
        mNetwork.impl.weights = externalWeights(model, size, path);
        auto const* start = static_cast<char const*>(model);
        Message{start, start + size}.read([&](uint64_t field, uint64_t, Message graph) {
            if (field != 7)
            {
                return;
            }
            graph.read([&](uint64_t field, uint64_t, Message part) {
                auto& network = mNetwork.impl;
                if (field == 11 || field == 12)
                {
                    auto& side = field == 11 ? network.inputs : network.outputs;
                    side.push_back(new TensorOfNetwork{valueInfo(part, field == 11)});
                }
            });
        });
        return true;
    }

private:
    NetworkOfModel& mNetwork;
};

class RefitterImpl final : public apiv::DoubleRefitter
{
public:
    explicit RefitterImpl(Plan& of)
        : plan{of}
    {
    }
    int32_t getMissingWeights(int32_t size, char const** names) noexcept override
    {
        int32_t count = 0;
        for (auto const& [name, sum] : plan.stripped)
        {
            if (given.count(name) == 0)
            {
                if (count < size)
                {
                    names[count] = name.c_str();
                }
                count += 1;
            }
        }
        return count;
    }
    bool refitCudaEngine() noexcept override
    {
        if (given != plan.stripped)
        {
            return fail("other weights than the plan was built with");
        }
        note("refitted " + std::to_string(given.size()));
        plan.stripped.clear();
        return true;
    }
    Plan& plan;
    std::map<std::string, std::string> given;
};
using RefitterOfEngine = Made<IRefitter, RefitterImpl>;

class ParserRefitter final : public nvonnxparser::DoubleParserRefitter
{
public:
    explicit ParserRefitter(RefitterOfEngine& refitter)
        : mRefitter{refitter}
    {
    }
    bool refitFromBytes(void const* model, size_t size, char const* path) noexcept override
    {
        auto& of = mRefitter.impl;
        of.given = externalWeights(model, size, path);
        if (char const* name = std::getenv("RATPLUS_DOUBLE_FORGETS"))
        {
            of.given.erase(name);
        }
        return of.getMissingWeights(0, nullptr) == 0;
    }
    int32_t getNbErrors() const noexcept override
    {
        return 0;
    }

private:
    RefitterOfEngine& mRefitter;
};

} // namespace

extern "C" void* createInferRefitter_INTERNAL(void* engine, void*, int32_t version) noexcept
{
    auto* of = static_cast<Engine*>(static_cast<ICudaEngine*>(engine));
    return version == NV_TENSORRT_VERSION ? static_cast<IRefitter*>(new RefitterOfEngine{of->impl.plan}) : nullptr;
}

extern "C" void* createNvOnnxParserRefitter_INTERNAL(void* refitter, void*, int32_t version) noexcept
{
    auto* of = static_cast<RefitterOfEngine*>(static_cast<IRefitter*>(refitter));
    auto* made = version == NV_ONNX_PARSER_VERSION ? new ParserRefitter{*of} : nullptr;
    return static_cast<nvonnxparser::IParserRefitter*>(made);
}

extern "C" void* createInferBuilder_INTERNAL(void* logger, int32_t) noexcept
{
    gLogger = static_cast<ILogger*>(logger);
    return static_cast<IBuilder*>(new Made<IBuilder, BuilderImpl>);
}

extern "C" void* createNvOnnxParser_INTERNAL(void* network, void*, int) noexcept
{
    auto* of = static_cast<INetworkDefinition*>(network);
    return static_cast<nvonnxparser::IParser*>(new Parser{static_cast<NetworkOfModel&>(*of)});
}
