// The creators, one an operator.

#include "plugin.h"

#include <new>

namespace ratplus {

Calls const* calls = nullptr;

namespace {

class Creator final : public nvinfer1::IPluginCreatorV3One {
public:
    explicit Creator(int32_t index) noexcept : index_(index), op_(*calls->describe(index)) {
        fields_.nbFields = op_.field_count;
        fields_.fields = reinterpret_cast<nvinfer1::PluginField const*>(op_.fields);
    }

    nvinfer1::IPluginV3* createPlugin(nvinfer1::AsciiChar const* name, nvinfer1::PluginFieldCollection const* fc,
        nvinfer1::TensorRTPhase /*phase*/) noexcept override {
        auto const* fields = fc == nullptr ? nullptr : reinterpret_cast<Field const*>(fc->fields);
        int32_t const count = fields == nullptr ? 0 : fc->nbFields;
        return Plugin::make(op_, calls->create(index_, name, fields, count));
    }

    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override {
        return &fields_;
    }

    nvinfer1::AsciiChar const* getPluginName() const noexcept override {
        return op_.name;
    }

    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override {
        return op_.version;
    }

    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override {
        return op_.domain;
    }

private:
    int32_t const index_;
    Operator const& op_;
    nvinfer1::PluginFieldCollection fields_{};
};

}  // namespace

extern "C" void* const* ratplus_trt_creators(Calls const* functions, int32_t* count) {
    calls = functions;
    struct List {
        void* creators[kMaxOperators]{};
        int32_t count{};

        List() noexcept {
            int32_t const total = calls->operators;
            for (int32_t i = 0; i < total && count < kMaxOperators; ++i) {
                if (auto* creator = new (std::nothrow) Creator(i); creator != nullptr) {
                    creators[count++] = static_cast<nvinfer1::IPluginCreatorInterface*>(creator);
                }
            }
        }
    };
    // The creators are never destroyed: a host may ask until the process ends.
    static List const list;
    *count = list.count;
    return list.creators;
}

}  // namespace ratplus
