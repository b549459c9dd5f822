// What the C++ classes and the Rust code call each other by. Rust's side is src/abi.rs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ratplus {

// nvinfer1::PluginTensorDesc; checked in plugin.cpp.
struct Tensor {
    int32_t rank;
    int64_t dims[8];  // -1 where not known
    int32_t type;     // nvinfer1::DataType
    int32_t format;   // nvinfer1::TensorFormat
    float scale;
};

// nvinfer1::PluginField; checked in plugin.cpp.
struct Field {
    char const* name;
    void const* data;
    int32_t type;  // nvinfer1::PluginFieldType
    int32_t length;
};

// Where a dimension of an output comes from.
struct Source {
    int32_t input;
    int32_t axis;
};

// An operator, for as long as the library is loaded.
struct Operator {
    char const* name;
    char const* version;
    char const* domain;
    int32_t inputs;
    int32_t outputs;
    Field const* fields;  // what a creator takes, without data
    int32_t field_count;
    int32_t const* aliased;  // per output: the input whose memory it takes over, or -1
    int32_t const* ranks;    // per output
    Source const* sources;   // per output: kMaxRank entries
};

constexpr int32_t kMaxRank = 8;
constexpr int32_t kMaxOperators = 8;
constexpr int32_t kMaxTensors = 16;  // of an operator, inputs and outputs together

// The state of one plugin object.
struct Node;

// Rust's functions. None throws; those that fail have logged why.
struct Calls {
    int32_t operators;
    Operator const* (*describe)(int32_t op);

    // Null: bad fields.
    Node* (*create)(int32_t op, char const* name, Field const* fields, int32_t count);
    // Null: a defect.
    Node* (*clone)(Node const* node);
    void (*destroy)(Node* node);
    // 0: done. inputs and outputs hold nvinfer1::DataType.
    int32_t (*output_types)(Node const* node, int32_t const* inputs, int32_t input_count, int32_t* outputs,
        int32_t output_count);
    // 0: they fit the operator, as far as their dimensions are known. Types count where typed is not 0.
    int32_t (*check)(Node const* node, Tensor const* inputs, int32_t input_count, Tensor const* outputs,
        int32_t output_count, int32_t typed);
    // Whether tensor number position may have its type and format; those after it are not looked at.
    bool (*supports)(Node const* node, int32_t position, Tensor const* tensors, int32_t count);
    // Bytes for a profile's largest inputs; remembered by the node.
    size_t (*workspace)(Node const* node, Tensor const* smallest, Tensor const* largest, int32_t count);
    // 0: ready to run these shapes.
    int32_t (*prepare)(Node* node, Tensor const* inputs, int32_t count);
    // 0: in the stream.
    int32_t (*enqueue)(Node* node, Tensor const* descriptions, void const* const* inputs, void* const* outputs,
        void* workspace, void* stream);
    // What create makes the same node of. Valid until the node changes.
    Field const* (*fields)(Node* node, int32_t* count);
    // The node's attributes in words. Valid as long as the node.
    char const* (*identity)(Node const* node);
};

// Set before the first creator is made.
extern Calls const* calls;

// C++'s: nvinfer1::IPluginCreatorInterface* of each operator. Keeps the functions.
extern "C" void* const* ratplus_trt_creators(Calls const* functions, int32_t* count);

}  // namespace ratplus
