// The host's own interfaces, whose layout differs between its releases: compiled once for each,
// with the namespace renamed.

#include <NvInfer.h>

#include <cstring>

#define RATPLUS_JOIN_(a, b) ratplus_trt_##a##_##b
#define RATPLUS_JOIN(a, b) RATPLUS_JOIN_(a, b)
#define RATPLUS_NAME(name) RATPLUS_JOIN(RATPLUS_GENERATION, name)

using namespace nvinfer1;

extern "C" {

// Null: the host has none.
void* RATPLUS_NAME(find_logger)(void* finder) {
    return static_cast<ILoggerFinder*>(finder)->findLogger();
}

// severity is nvinfer1::ILogger::Severity.
void RATPLUS_NAME(log)(void* logger, int32_t severity, char const* message) {
    static_cast<ILogger*>(logger)->log(static_cast<ILogger::Severity>(severity), message);
}

// False: the registry refuses it.
bool RATPLUS_NAME(register_creator)(void* registry, void* creator, char const* domain) {
    return static_cast<IPluginRegistry*>(registry)->registerCreator(
        *static_cast<IPluginCreatorInterface*>(creator), domain);
}

bool RATPLUS_NAME(deregister_creator)(void* registry, void* creator) {
    IPluginCreatorInterface const& deregistered = *static_cast<IPluginCreatorInterface*>(creator);
    return static_cast<IPluginRegistry*>(registry)->deregisterCreator(deregistered);
}

// Null: the registry has none. (Its own getCreator logs an error then.)
void* RATPLUS_NAME(find_creator)(void* registry, char const* name, char const* version, char const* domain) {
    int32_t count = 0;
    IPluginCreatorInterface* const* all = static_cast<IPluginRegistry*>(registry)->getAllCreators(&count);
    for (int32_t i = 0; i < count; ++i) {
        if (all[i] == nullptr || std::strcmp(all[i]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") != 0) {
            continue;
        }
        auto* creator = static_cast<IPluginCreatorV3One*>(all[i]);
        if (std::strcmp(creator->getPluginName(), name) == 0 && std::strcmp(creator->getPluginVersion(), version) == 0
            && std::strcmp(creator->getPluginNamespace(), domain) == 0) {
            return all[i];
        }
    }
    return nullptr;
}
}
