//! Names in a pickle: the few that a state dict needs, and those that only an attack has.

use super::super::tensor::StoredType;
use super::{Global, Rebuild};

/// What PyTorch calls a storage and the type of its elements.
const TYPES: [(&str, &str, StoredType); 10] = [
    ("Float", "float32", StoredType::F32),
    ("Half", "float16", StoredType::F16),
    ("BFloat16", "bfloat16", StoredType::BF16),
    ("Double", "float64", StoredType::F64),
    ("Long", "int64", StoredType::I64),
    ("Int", "int32", StoredType::I32),
    ("Short", "int16", StoredType::I16),
    ("Char", "int8", StoredType::I8),
    ("Byte", "uint8", StoredType::U8),
    ("Bool", "bool", StoredType::Bool),
];

/// What a name that a state dict needs stands for.
pub(super) fn global(module: &str, name: &str) -> Option<Global> {
    Some(match (module, name) {
        ("torch._utils", "_rebuild_tensor_v2") => Global::Rebuild(Rebuild::Tensor),
        ("torch._utils", "_rebuild_tensor_v3") => Global::Rebuild(Rebuild::TensorWithDtype),
        ("torch._utils", "_rebuild_parameter") => Global::Rebuild(Rebuild::Parameter),
        ("torch._utils", "_rebuild_parameter_with_state") => {
            Global::Rebuild(Rebuild::ParameterWithState)
        }
        ("torch._tensor", "_rebuild_from_type" | "_rebuild_from_type_v2") => {
            Global::Rebuild(Rebuild::FromType)
        }
        ("collections", "OrderedDict") | ("easydict", "EasyDict") => Global::Mapping,
        ("torch", "Size" | "device") | ("_codecs", "encode") => Global::Data,
        ("__builtin__" | "builtins", "set" | "frozenset" | "complex" | "bytearray") => Global::Data,
        ("__builtin__" | "builtins", "getattr") => Global::Attribute,
        ("torch.storage", "UntypedStorage") | ("torch", "UntypedStorage") => {
            Global::Storage(StoredType::U8)
        }
        ("torch", name) => match name.strip_suffix("Storage") {
            Some(kind) => Global::Storage(TYPES.iter().find(|it| it.0 == kind)?.2),
            None => Global::Dtype(TYPES.iter().find(|it| it.1 == name)?.2),
        },
        _ => return None,
    })
}

/// Types that add nothing to the values of the tensor they stand for.
pub(super) fn plain_tensor(module: &str, name: &str) -> bool {
    matches!(
        (module, name),
        ("torch", "Tensor") | ("torch.nn.parameter", "Parameter" | "Buffer")
    )
}

/// Longest name that is taken for one.
const LONGEST: usize = 1000;

/// Modules that reach the system, the interpreter or other pickles; wherever they stand in a name:
/// a module that imports `os` has an attribute `os`.
const REACH: &str = "os posix nt sys subprocess commands builtins __builtin__ ctypes cffi importlib imp \
    runpy pty shutil socket ssl marshal pickle cPickle cloudpickle dill joblib shelve webbrowser \
    multiprocessing tempfile urllib urllib2 httplib requests aiohttp httpx urllib3 paramiko pip \
    setuptools pkg_resources distutils cpp_extension f2py numexpr";

/// Words of functions that run code, load it, or read what others wrote.
const VERBS: &str = "apply attrgetter call compile delattr eval evaluate exec execfile execute fork \
    getattr import input invoke kill load loads main methodcaller open partial pickle popen remove \
    rmtree run save setattr shell spawn system unlink unpickle write";

/// Parts of PyTorch and NumPy that run, compile or load.
const MACHINERY: &str = "torch.hub torch.jit torch.package torch.serialization torch.fx torch.ops \
    torch.classes torch.library torch.export torch.onnx torch.testing torch.compiler \
    torch.utils.bottleneck torch.utils.collect_env torch.utils.data.datapipes torch.utils.model_zoo \
    torch.utils._config_module torch.distributed.rpc torch.distributed.run torch.distributed.launcher \
    torch.distributed.elastic torch._dynamo torch._inductor torch._functorch torch._ops torch._classes \
    torch._export torch._lobpcg numpy.testing numpy.distutils numpy.lib.npyio";

/// The standard library, whose few data types are listed below.
const STANDARD: &str = "abc aifc antigravity argparse array ast asynchat asyncio asyncore atexit \
    audioop base64 bdb binascii bisect bz2 cProfile calendar cgi cgitb chunk cmath cmd code codecs \
    codeop collections colorsys compileall concurrent configparser contextlib contextvars copy \
    copy_reg copyreg crypt csv curses dataclasses datetime dbm decimal difflib dis doctest email \
    encodings ensurepip enum errno exceptions faulthandler fcntl filecmp fileinput fnmatch formatter \
    fractions ftplib functools gc genericpath getopt getpass gettext glob graphlib grp gzip hashlib \
    heapq hmac html http idlelib imaplib imghdr inspect io ipaddress itertools json keyword lib2to3 \
    linecache locale logging lzma mailbox mailcap math mimetypes mmap modulefinder msilib msvcrt \
    netrc new nis nntplib ntpath nturl2path numbers opcode operator optparse ossaudiodev pathlib pdb \
    pickletools pipes pkgutil platform plistlib poplib posixpath pprint profile pstats pwd py_compile \
    pyclbr pydoc pydoc_data pyexpat queue quopri random re readline reprlib resource rlcompleter sched \
    secrets select selectors shlex signal site smtpd smtplib sndhdr socketserver spwd sqlite3 \
    sre_compile sre_constants sre_parse stat statistics string stringprep struct sunau symtable \
    sysconfig syslog tabnanny tarfile telnetlib termios textwrap threading time timeit tkinter token \
    tokenize tomllib trace traceback tracemalloc tty turtle turtledemo types typing unicodedata \
    unittest uu uuid venv warnings wave weakref winreg winsound wsgiref xdrlib xml xmlrpc zipapp \
    zipfile zipimport zlib zoneinfo";

/// Data types of the standard library, by module.
const DATA: &[(&str, &str)] = &[
    (
        "__builtin__ builtins",
        "abs all any bool bytearray bytes complex dict enumerate float frozenset int iter len list long \
         max min object pow range reversed round set slice sorted str sum tuple type unicode xrange zip \
         Ellipsis NotImplemented",
    ),
    (
        "collections",
        "ChainMap Counter OrderedDict UserDict UserList UserString defaultdict deque",
    ),
    (
        "UserDict UserList UserString",
        "UserDict UserList UserString",
    ),
    ("datetime", "date datetime time timedelta timezone tzinfo"),
    ("zoneinfo", "ZoneInfo ZoneInfo._unpickle"),
    ("time", "struct_time"),
    ("decimal", "Context Decimal"),
    ("fractions", "Fraction"),
    ("uuid", "SafeUUID UUID"),
    (
        "pathlib pathlib._local pathlib._abc",
        "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    ),
    ("argparse", "Namespace"),
    (
        "types",
        "EllipsisType GenericAlias MappingProxyType NoneType SimpleNamespace",
    ),
    ("enum", "Enum Flag IntEnum IntFlag StrEnum auto"),
    ("random _random", "Random SystemRandom"),
    ("array", "array _array_reconstructor"),
    ("re", "RegexFlag _compile"),
    ("string", "Template"),
    ("logging", "Logger RootLogger getLogger"),
    ("itertools", "chain count cycle islice izip product repeat"),
    ("operator _operator", "getitem"),
    ("_io io", "BytesIO StringIO"),
    ("dataclasses", "Field _MISSING_TYPE"),
    (
        "ipaddress",
        "IPv4Address IPv4Network IPv6Address IPv6Network",
    ),
    (
        "copyreg copy_reg",
        "_reconstructor __newobj__ __newobj_ex__",
    ),
    ("torch.serialization", "_get_layout"),
];

fn listed(list: &str, word: &str) -> bool {
    list.split_ascii_whitespace().any(|item| item == word)
}

/// Whether a file that has this name was made to attack its reader, or could have been. Nothing is
/// called either way; a file is refused for such a name wherever it stands.
///
/// Everything that Python pickles has a name: types, functions, and the modules that other modules
/// import. Refused are names of modules that reach the system or run code, of functions that say so,
/// and of the standard library all but its data types. Types of everybody else are data.
pub(in super::super) fn hostile(module: &str, name: &str) -> bool {
    if module.len().saturating_add(name.len()) > LONGEST {
        return true;
    }
    let parts = || module.split('.').chain(name.split('.'));
    // A function's qualified name may hold `<locals>` and `<lambda>`.
    let word = |part: &str| {
        let part = part
            .strip_prefix('<')
            .and_then(|part| part.strip_suffix('>'))
            .unwrap_or(part);
        !part.is_empty() && part.chars().all(|c| c.is_alphanumeric() || c == '_')
    };
    if !parts().all(word) {
        return true;
    }
    if DATA
        .iter()
        .any(|(modules, names)| listed(modules, module) && listed(names, name))
    {
        return false;
    }
    let top = module.split('.').next().unwrap_or_default();
    let raised =
        name.ends_with("Error") || name.ends_with("Exception") || name.ends_with("Warning");
    match top {
        "__main__" => {}
        "__builtin__" | "builtins" | "exceptions" if raised && word(name) => return false,
        // Types of typing; its functions have small letters.
        "typing" if name != "ForwardRef" && name.starts_with(|c: char| c.is_ascii_uppercase()) => {}
        // The interpreter's own modules.
        top if top.starts_with('_') || listed(STANDARD, top) => return true,
        _ => {}
    }
    let own = parts().skip(usize::from(top == "__main__"));
    let reaches = own.clone().any(|part| {
        listed(REACH, part) || part.len() > 4 && part.starts_with("__") && part.ends_with("__")
    });
    let whole = format!("{module}.{name}");
    let within = |part: &str| {
        whole
            .strip_prefix(part)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    // Cython's, one for each type.
    let last = last.strip_prefix("__pyx_unpickle_").unwrap_or(last);
    let verb = last.split('_').any(|word| listed(VERBS, word));
    reaches || verb || MACHINERY.split_ascii_whitespace().any(within)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_act_are_hostile() {
        for name in [
            "os.system",
            "posix.system",
            "nt.system",
            "commands.getoutput",
            "subprocess.Popen",
            "sys.modules",
            "builtins.eval",
            "builtins.__import__",
            "__builtin__.execfile",
            "__builtin__.apply",
            "__builtin__.reduce",
            "builtins.map",
            "builtins.open",
            "builtins.globals",
            "builtins.breakpoint",
            "_pickle.loads",
            "_io.FileIO",
            "_posixsubprocess.fork_exec",
            "_frozen_importlib._call_with_frames_removed",
            "asyncio.unix_events._UnixSubprocessTransport._start",
            "code.InteractiveInterpreter.runcode",
            "functools.partial",
            "functools.reduce",
            "operator.attrgetter",
            "operator.methodcaller",
            "_operator.methodcaller",
            "types.FunctionType",
            "types.CodeType",
            "typing.get_type_hints",
            "typing.ForwardRef",
            "collections.namedtuple",
            "logging.config.listen",
            "logging.FileHandler",
            "pathlib.Path.unlink",
            "pathlib.os.system",
            "pydoc.pipepager",
            "uuid._popen",
            "zipfile.ZipFile",
            "torch.load",
            "torch.hub.load",
            "torch.jit.load",
            "torch.serialization.load",
            "torch.serialization.os.system",
            "torch.storage._load_from_bytes",
            "torch.package.PackageImporter",
            "torch.fx.graph_module.reduce_graph_module",
            "torch.utils.cpp_extension.load",
            "torch.utils.collect_env.run",
            "torch.utils.bottleneck.__main__.run_cprofile",
            "torch._dynamo.guards.GuardBuilder.get",
            "torch._inductor.codecache.compile_file",
            "torch.multiprocessing.reductions.rebuild_storage_fd",
            "torch.nn.Module.__init__.__globals__",
            "torch.fx.experimental.symbolic_shapes.ShapeEnv.evaluate_guards_expression",
            "numpy.load",
            "numpy.f2py.crackfortran.myeval",
            "numpy.testing._private.utils.runstring",
            "joblib.numpy_pickle.load",
            "dill._dill._create_function",
            "cloudpickle.cloudpickle._make_function",
            "pandas.read_pickle",
            "pandas.eval",
            "yaml.unsafe_load",
            "pip.main",
            "keras.models.load_model",
            "easydict.os",
            "mine.utils.subprocess.run",
            "mine.run_shell",
            "__main__.os.system",
            "mine.a b",
            "mine.",
            "mine.x\n",
        ] {
            let (module, name) = name.split_at(name.find('.').unwrap_or_default());
            // Wherever a pickle cuts module from name.
            let whole = format!("{module}{name}");
            for (at, _) in whole.match_indices('.') {
                assert!(hostile(&whole[..at], &whole[at + 1..]), "{whole} at {at}");
            }
        }
        assert!(hostile("mine", &"x".repeat(2000)));
    }

    #[test]
    fn names_of_data_are_not() {
        for (module, name) in [
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy.core.multiarray", "scalar"),
            ("numpy", "dtype"),
            ("numpy", "ndarray"),
            ("numpy.random._pickle", "__randomstate_ctor"),
            ("numpy.random._mt19937", "MT19937"),
            ("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence"),
            ("argparse", "Namespace"),
            ("types", "SimpleNamespace"),
            ("omegaconf.dictconfig", "DictConfig"),
            ("omegaconf.base", "ContainerMetadata"),
            ("typing", "Any"),
            ("pathlib", "PosixPath"),
            ("pathlib._local", "PosixPath"),
            ("datetime", "datetime"),
            ("collections", "Counter"),
            ("collections", "defaultdict"),
            ("__builtin__", "xrange"),
            ("__builtin__", "slice"),
            ("__builtin__", "dict"),
            ("exceptions", "ValueError"),
            ("builtins", "KeyError"),
            ("uuid", "UUID"),
            ("fractions", "Fraction"),
            ("decimal", "Decimal"),
            ("torch", "float8_e4m3fn"),
            ("torch", "complex64"),
            ("torch", "ComplexFloatStorage"),
            ("torch", "QInt8Storage"),
            ("torch", "Tensor"),
            ("torch", "per_tensor_affine"),
            ("torch.serialization", "_get_layout"),
            ("torch._utils", "_rebuild_sparse_tensor"),
            ("torch._utils", "_rebuild_qtensor"),
            ("torch._utils", "_rebuild_meta_tensor_no_storage"),
            ("torch._utils", "_rebuild_device_tensor_from_numpy"),
            ("torch._utils", "_rebuild_wrapper_subclass"),
            ("torch._C._nn", "gelu"),
            ("torch.nn.modules.linear", "Linear"),
            ("torch.optim.adamw", "AdamW"),
            ("torch.distributed.tensor", "DTensor"),
            ("torch.distributed.device_mesh", "DeviceMesh"),
            ("torch.utils.data.dataloader", "DataLoader"),
            ("transformers.training_args", "TrainingArguments"),
            ("lightning.fabric.utilities.data", "AttributeDict"),
            ("mk", "Sched"),
            ("__main__", "Config"),
            ("__main__", "main_model.<locals>.Inner"),
            ("model.backbone.sequence", "SequenceModel"),
        ] {
            assert!(!hostile(module, name), "{module}.{name}");
        }
    }
}
