// What Rust calls: src/table.rs has the same structs, field by field.

#ifndef RATPLUS_NVINFER_API_H
#define RATPLUS_NVINFER_API_H

#include <cstddef>
#include <cstdint>

extern "C"
{

using RatplusLog = void (*)(void* user, int32_t severity, char const* text);

//! Room for a message; always ended with a NUL.
struct RatplusText
{
    char* data;
    size_t capacity;
};

//! What was found in TensorRT's libraries. Null where a library was not loaded.
struct RatplusSymbols
{
    void* createBuilder;
    void* createRuntime;
    void* createParser;
    void* createRefitter;
    void* createParserRefitter;
};

//! A slice of bytes that `owner` keeps.
struct RatplusBytes
{
    void* owner;
    void const* data;
    size_t size;
};

struct RatplusTensor
{
    //! Lives as long as what it was asked of.
    char const* name;
    //! 0: f32, 1: f16, 2: bf16, 3: i64, others: 100 and TensorRT's own number.
    int32_t dtype;
    int32_t isInput;
    int32_t rank;
    int64_t dims[8];
};

//! How plans are built; what is 0, or negative where that says so, is left to TensorRT.
struct RatplusBuildSettings
{
    uint64_t workspaceBytes;
    //! 0 to 5; negative: TensorRT's own.
    int32_t optimizationLevel;
    int32_t versionCompatible;
    //! 1: Ampere and later GPUs; 2: GPUs of the same compute capability.
    int32_t hardwareCompatibility;
    //! Layers say what they do in detail.
    int32_t detailed;
    //! Weights that engineRefit can put in are left out.
    int32_t stripWeights;
};

struct RatplusView
{
    void const* data;
    size_t size;
};

struct RatplusNetworkRequest
{
    void const* model;
    size_t modelSize;
    //! Of the model: weights lie beside it.
    char const* path;
    //! Null: the network has no plugins. A C string else.
    char const* pluginLibrary;
    //! What earlier builds measured, put together.
    RatplusView const* timingCaches;
    int32_t timingCacheCount;
    //! TensorRT for RTX: as 10 x major + minor; none leaves it to the library.
    int32_t const* capabilities;
    int32_t capabilityCount;
    //! Names and shapes of inputs, `inputCount` for each profile.
    RatplusTensor const* inputs;
    int32_t inputCount;
    int32_t profileCount;
    RatplusBuildSettings settings;
};

//! Copies a part of a plan to the host or to the GPU, there in the stream. 0: done.
using RatplusCopy = int32_t (*)(void* user, void* to, void const* from, size_t size, void* stream);

struct RatplusPlan
{
    void const* data;
    size_t size;
    RatplusCopy copy;
    void* user;
    //! Whether code of the host that is in the plan may run.
    int32_t hostCode;
    //! TensorRT for RTX: what engineCache gave; may be empty.
    void const* cache;
    size_t cacheSize;
};

//! The model that a stripped plan was built from.
struct RatplusModel
{
    void const* data;
    size_t size;
    //! As in RatplusNetworkRequest.
    char const* path;
};

struct RatplusContextRequest
{
    int32_t profile;
    //! TensorRT for RTX: whether runs are captured in a CUDA graph.
    int32_t graph;
    void* stream;
    //! Names and shapes of inputs, of which those count that are open.
    RatplusTensor const* inputs;
    int32_t inputCount;
};

//! Every function that returns an int32_t: 0 is success, and the message says what failed else.
struct RatplusTable
{
    uint32_t rtx;
    uint32_t major;
    uint32_t minor;

    void* (*loggerNew)(RatplusLog log, void* user);
    void (*loggerFree)(void* logger);

    int32_t (*networkNew)(RatplusSymbols const*, void* logger, RatplusNetworkRequest const*, void** network,
        RatplusText);
    int32_t (*networkTensorCount)(void* network);
    int32_t (*networkTensor)(void* network, int32_t index, RatplusTensor*);
    //! Compute capabilities that were set, as 10 x major + minor, at most `capacity`; returns how many.
    int32_t (*networkCapabilities)(void* network, int32_t* capabilities, int32_t capacity);
    int32_t (*networkBuild)(void* network, RatplusBytes*, RatplusText);
    //! Empty where there is no timing cache.
    int32_t (*networkTimingCache)(void* network, RatplusBytes*, RatplusText);
    void (*networkFree)(void* network);
    void (*bytesFree)(void* owner);

    int32_t (*runtimeNew)(RatplusSymbols const*, void* logger, char const* pluginLibrary, void** runtime, RatplusText);
    //! TensorRT for RTX: reads a plan's header. 0 in `diagnostics`: valid here.
    int32_t (*runtimeCheck)(void* runtime, void const* plan, size_t size, uint64_t* diagnostics, RatplusText);
    void (*runtimeFree)(void* runtime);

    int32_t (*engineNew)(void* runtime, RatplusPlan const*, void** engine, RatplusText);
    //! Puts the model's weights into a stripped plan, before there are contexts.
    int32_t (*engineRefit)(RatplusSymbols const*, void* logger, void* engine, RatplusModel const*, RatplusText);
    //! Gives `take` every layer in words, as JSON.
    int32_t (*engineInspect)(void* engine, RatplusLog take, void* user, RatplusText);
    //! Bytes that a run at a profile needs beside its tensors.
    int64_t (*engineScratch)(void* engine, int32_t profile);
    //! TensorRT for RTX: what contexts have compiled. Empty else.
    int32_t (*engineCache)(void* engine, RatplusBytes*, RatplusText);
    void (*engineFree)(void* engine);

    int32_t (*contextNew)(void* engine, RatplusContextRequest const*, void** context, RatplusText);
    int32_t (*contextTensorCount)(void* context);
    int32_t (*contextTensor)(void* context, int32_t index, RatplusTensor*);
    void (*contextScratch)(void* context, void* address, int64_t size);
    int32_t (*contextBind)(void* context, char const* tensor, void* address);
    int32_t (*contextEnqueue)(void* context, void* stream);
    void (*contextFree)(void* context);
};

} // extern "C"

#endif
