#include "plugin.h"

#include <array>
#include <new>
#include <type_traits>

namespace ratplus {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;

static_assert(sizeof(Tensor) == sizeof(PluginTensorDesc), "one layout");
static_assert(std::is_standard_layout_v<PluginTensorDesc>, "offsets are known");
static_assert(offsetof(Tensor, rank) == offsetof(PluginTensorDesc, dims.nbDims), "one layout");
static_assert(offsetof(Tensor, dims) == offsetof(PluginTensorDesc, dims.d), "one layout");
static_assert(offsetof(Tensor, type) == offsetof(PluginTensorDesc, type), "one layout");
static_assert(offsetof(Tensor, format) == offsetof(PluginTensorDesc, format), "one layout");
static_assert(kMaxRank == nvinfer1::Dims::MAX_DIMS, "one layout");
static_assert(sizeof(Field) == sizeof(PluginField), "one layout");
static_assert(offsetof(Field, name) == offsetof(PluginField, name), "one layout");
static_assert(offsetof(Field, data) == offsetof(PluginField, data), "one layout");
static_assert(offsetof(Field, type) == offsetof(PluginField, type), "one layout");
static_assert(offsetof(Field, length) == offsetof(PluginField, length), "one layout");

// The numbers in src/abi.rs.
static_assert(static_cast<int32_t>(DataType::kFLOAT) == 0 && static_cast<int32_t>(DataType::kHALF) == 1, "numbers");
static_assert(static_cast<int32_t>(DataType::kBF16) == 7 && static_cast<int32_t>(DataType::kINT64) == 8, "numbers");
static_assert(static_cast<int32_t>(nvinfer1::TensorFormat::kLINEAR) == 0, "numbers");
static_assert(static_cast<int32_t>(PluginFieldType::kFLOAT32) == 1, "numbers");
static_assert(static_cast<int32_t>(PluginFieldType::kFLOAT64) == 2, "numbers");
static_assert(static_cast<int32_t>(PluginFieldType::kINT32) == 5, "numbers");
static_assert(static_cast<int32_t>(PluginFieldType::kCHAR) == 6, "numbers");
static_assert(static_cast<int32_t>(PluginFieldType::kINT64) == 10, "numbers");

namespace {

using Tensors = std::array<Tensor, kMaxTensors>;

Tensor const* plain(PluginTensorDesc const* tensors) noexcept {
    return reinterpret_cast<Tensor const*>(tensors);
}

using End = nvinfer1::Dims DynamicPluginTensorDesc::*;

// Copies descriptions with open dimensions as at one end of their ranges. The number copied.
int32_t describe(Tensors& to, DynamicPluginTensorDesc const* from, int32_t count, End end) noexcept {
    count = from == nullptr || count < 0 ? 0 : count < kMaxTensors ? count : kMaxTensors;
    for (int32_t i = 0; i < count; ++i) {
        Tensor& tensor = to[i] = *plain(&from[i].desc);
        nvinfer1::Dims const& known = from[i].*end;
        for (int32_t axis = 0; axis < tensor.rank && axis < kMaxRank; ++axis) {
            if (tensor.dims[axis] < 0 && known.nbDims == tensor.rank) {
                tensor.dims[axis] = known.d[axis];
            }
        }
    }
    return count;
}

}  // namespace

Plugin::Plugin(Operator const& op, Node* node) noexcept : op_(op), node_(node) {}

Plugin::~Plugin() noexcept {
    calls->destroy(node_);
}

Plugin* Plugin::make(Operator const& op, Node* node) noexcept {
    if (node == nullptr) {
        return nullptr;
    }
    Plugin* plugin = new (std::nothrow) Plugin(op, node);
    if (plugin == nullptr) {
        calls->destroy(node);
    }
    return plugin;
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
    switch (type) {
        case PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuildV2*>(this);
        case PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
    return make(op_, calls->clone(node_));
}

nvinfer1::AsciiChar const* Plugin::getPluginName() const noexcept {
    return op_.name;
}

nvinfer1::AsciiChar const* Plugin::getPluginVersion() const noexcept {
    return op_.version;
}

nvinfer1::AsciiChar const* Plugin::getPluginNamespace() const noexcept {
    return op_.domain;
}

int32_t Plugin::configurePlugin(DynamicPluginTensorDesc const* in, int32_t nbInputs, DynamicPluginTensorDesc const* out,
    int32_t nbOutputs) noexcept {
    Tensors inputs, outputs;
    int32_t const input_count = describe(inputs, in, nbInputs, &DynamicPluginTensorDesc::max);
    int32_t const output_count = describe(outputs, out, nbOutputs, &DynamicPluginTensorDesc::max);
    return calls->check(node_, inputs.data(), input_count, outputs.data(), output_count, 1);
}

int32_t Plugin::getOutputDataTypes(
    DataType* outputTypes, int32_t nbOutputs, DataType const* inputTypes, int32_t nbInputs) const noexcept {
    static_assert(sizeof(DataType) == sizeof(int32_t), "one layout");
    return calls->output_types(node_, reinterpret_cast<int32_t const*>(inputTypes), nbInputs,
        reinterpret_cast<int32_t*>(outputTypes), nbOutputs);
}

int32_t Plugin::getOutputShapes(DimsExprs const* inputs, int32_t nbInputs, DimsExprs const* /*shapeInputs*/,
    int32_t /*nbShapeInputs*/, DimsExprs* outputs, int32_t nbOutputs,
    nvinfer1::IExprBuilder& /*exprBuilder*/) noexcept {
    Tensors known{};
    int32_t const count = inputs == nullptr || nbInputs < 0 ? 0 : nbInputs < kMaxTensors ? nbInputs : kMaxTensors;
    for (int32_t i = 0; i < count; ++i) {
        known[i].rank = inputs[i].nbDims;
        for (int32_t axis = 0; axis < inputs[i].nbDims && axis < kMaxRank; ++axis) {
            auto const* dim = inputs[i].d[axis];
            known[i].dims[axis] = dim != nullptr && dim->isConstant() ? dim->getConstantValue() : -1;
        }
    }
    if (int32_t const bad = calls->check(node_, known.data(), count, nullptr, nbOutputs, 0); bad != 0) {
        return bad;
    }
    for (int32_t o = 0; o < op_.outputs; ++o) {
        outputs[o].nbDims = op_.ranks[o];
        for (int32_t axis = 0; axis < op_.ranks[o]; ++axis) {
            Source const& source = op_.sources[o * kMaxRank + axis];
            outputs[o].d[axis] = inputs[source.input].d[source.axis];
        }
    }
    return 0;
}

bool Plugin::supportsFormatCombination(
    int32_t pos, DynamicPluginTensorDesc const* inOut, int32_t nbInputs, int32_t nbOutputs) noexcept {
    if (nbInputs != op_.inputs || nbOutputs != op_.outputs || pos < 0 || pos >= nbInputs + nbOutputs) {
        return false;
    }
    Tensors tensors;
    int32_t const count = describe(tensors, inOut, pos + 1, &DynamicPluginTensorDesc::max);
    return calls->supports(node_, pos, tensors.data(), count);
}

int32_t Plugin::getNbOutputs() const noexcept {
    return op_.outputs;
}

size_t Plugin::getWorkspaceSize(DynamicPluginTensorDesc const* inputs, int32_t nbInputs,
    DynamicPluginTensorDesc const* /*outputs*/, int32_t /*nbOutputs*/) const noexcept {
    Tensors smallest, largest;
    describe(smallest, inputs, nbInputs, &DynamicPluginTensorDesc::min);
    int32_t const count = describe(largest, inputs, nbInputs, &DynamicPluginTensorDesc::max);
    return calls->workspace(node_, smallest.data(), largest.data(), count);
}

char const* Plugin::getTimingCacheID() noexcept {
    return calls->identity(node_);
}

char const* Plugin::getMetadataString() noexcept {
    return calls->identity(node_);
}

int32_t Plugin::getAliasedInput(int32_t outputIndex) noexcept {
    return outputIndex >= 0 && outputIndex < op_.outputs ? op_.aliased[outputIndex] : -1;
}

int32_t Plugin::onShapeChange(
    PluginTensorDesc const* in, int32_t nbInputs, PluginTensorDesc const* out, int32_t nbOutputs) noexcept {
    if (int32_t const bad = calls->check(node_, plain(in), nbInputs, plain(out), nbOutputs, 1); bad != 0) {
        return bad;
    }
    return calls->prepare(node_, plain(in), nbInputs);
}

int32_t Plugin::enqueue(PluginTensorDesc const* inputDesc, PluginTensorDesc const* /*outputDesc*/,
    void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
    return calls->enqueue(node_, plain(inputDesc), inputs, outputs, workspace, stream);
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext* /*context*/) noexcept {
    return clone();
}

nvinfer1::PluginFieldCollection const* Plugin::getFieldsToSerialize() noexcept {
    serialized_.fields = reinterpret_cast<PluginField const*>(calls->fields(node_, &serialized_.nbFields));
    return &serialized_;
}

}  // namespace ratplus
