"""Runs in a process of its own, with any onnxruntime and numpy that PYTHONPATH names.

    plugin_child.py LIBRARY run DIRECTORY       every case: case.onnx on case.npz, to case.out.npz
    plugin_child.py LIBRARY cycles MODEL INPUTS COUNT
    plugin_child.py LIBRARY thread_exit MODEL INPUTS COUNT
    plugin_child.py LIBRARY soak MODEL INPUTS COUNT
    plugin_child.py LIBRARY faults DIRECTORY    models that fail, then one that works
    plugin_child.py LIBRARY fork MODEL INPUTS
    plugin_child.py LIBRARY threads DIRECTORY THREADS COUNT     every case in a session that all threads share
    plugin_child.py LIBRARY one_output MODEL INPUTS THREADS COUNT   threads that write the same outputs: wrong use

The last line is a JSON object.
"""

import gc
import json
import os
import re
import sys
import threading
from pathlib import Path

import numpy as np
import onnxruntime as ort


def make_session(library, model, threads=2):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if "RATPLUS_NO_ARENA" in os.environ:
        # Every tensor its own allocation, which a sanitizer watches.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
    options.register_custom_ops_library(library)
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def load(path):
    with np.load(path) as file:
        return dict(file)


def resident_kib():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def run(library, directory):
    ran = []
    for model in sorted(Path(directory).glob("*.onnx")):
        session = make_session(library, model)
        names = [output.name for output in session.get_outputs()]
        outputs = session.run(names, load(model.with_suffix(".npz")))
        np.savez(model.with_suffix(".out.npz"), **dict(zip(names, outputs)))
        ran.append(model.stem)
    maps = Path("/proc/self/maps").read_text()
    return {"ran": ran, "cuda": sorted(set(re.findall(r"lib(?:cuda|nvrtc|cublas)[^/\s]*", maps)))}


def cycles(library, model, inputs, count):
    """Load, run, unload; memory after a quarter and at the end."""
    inputs, count = load(inputs), int(count)
    for cycle in range(count):
        session = make_session(library, model)
        session.run(None, inputs)
        del session
        if cycle == count // 4:
            gc.collect()
            early = resident_kib()
    gc.collect()
    return {"cycles": count - count // 4, "growth_kib": resident_kib() - early}


def thread_exit(library, model, inputs, count):
    """Threads that ran the operator end after the session, and with it the library, is gone."""
    inputs, ended = load(inputs), 0
    for _ in range(int(count)):
        session, ran, unloaded = make_session(library, model), threading.Barrier(5), threading.Event()

        def work(session):
            session.run(None, inputs)
            del session
            ran.wait()
            unloaded.wait()

        threads = [threading.Thread(target=work, args=(session,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        # Its threads hold it until they have run.
        del session
        ran.wait()
        threads_alive = sum(thread.is_alive() for thread in threads)
        gc.collect()
        unloaded.set()
        for thread in threads:
            thread.join()
        ended += threads_alive
    return {"ended": ended}


def shared_by_threads(library, directory, threads, count):
    """Runs of all cases by all threads at once, each compared with what one thread alone computed."""
    jobs, threads, count = [], int(threads), int(count)
    for index, model in enumerate(sorted(Path(directory).glob("*.onnx"))):
        session = make_session(library, model, threads=1 + index % 2)
        inputs = load(model.with_suffix(".npz"))
        for shift in range(3):
            feed = {n: np.roll(a, shift, -1) if a.dtype == np.float32 else a for n, a in inputs.items()}
            jobs.append((session, feed, [output.tobytes() for output in session.run(None, feed)]))
    wrong, done, start = [0] * threads, [0] * threads, threading.Barrier(threads)

    def work(me):
        start.wait()
        for step in range(count):
            # Every thread in an order of its own.
            session, feed, expected = jobs[(step * (2 * me + 1) + me) % len(jobs)]
            found = session.run(None, feed)
            wrong[me] += [output.tobytes() for output in found] != expected
            done[me] += 1

    workers = [threading.Thread(target=work, args=(me,)) for me in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    distinct = len({b"".join(expected) for _, _, expected in jobs})
    return {"runs": sum(done), "wrong": sum(wrong), "sessions": len(jobs) // 3, "distinct": distinct}


def one_output(library, model, inputs, threads, count):
    """Runs by all threads at once that have the same outputs bound, which no caller may do."""
    session, inputs, threads, count = make_session(library, model), load(inputs), int(threads), int(count)
    names = [output.name for output in session.get_outputs()]
    outputs = [ort.OrtValue.ortvalue_from_numpy(output) for output in session.run(names, inputs)]
    start = threading.Barrier(threads)

    def work():
        binding = session.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        for name, output in zip(names, outputs):
            binding.bind_ortvalue_output(name, output)
        start.wait()
        for _ in range(count):
            session.run_with_iobinding(binding)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return {"runs": threads * count}


def soak(library, model, inputs, count):
    """Runs of one session; memory after a tenth and at the end."""
    inputs, count = load(inputs), int(count)
    session = make_session(library, model)
    for step in range(count):
        session.run(None, inputs)
        if step == count // 10:
            early = resident_kib()
    return {"growth_kib": resident_kib() - early}


def faults(library, directory):
    messages = {}
    for model in sorted(Path(directory).glob("fault_*.onnx")):
        messages[model.stem] = ""
        try:
            session = make_session(library, model)
            session.run(None, load(Path(directory) / "good.npz"))
            del session
        except Exception as error:
            messages[model.stem] = str(error)
        gc.collect()
    good = make_session(library, Path(directory) / "good.onnx")
    outputs = good.run(None, load(Path(directory) / "good.npz"))
    return {"messages": messages, "good": bool(np.isfinite(outputs[0]).all())}


def fork(library, model, inputs):
    """A child forked after the library was loaded and used makes a session of its own."""
    inputs = load(inputs)
    before = make_session(library, model).run(None, inputs)
    child = os.fork()
    if child == 0:
        code = 3
        try:
            after = make_session(library, model).run(None, inputs)
            code = 0 if all(a.tobytes() == b.tobytes() for a, b in zip(before, after)) else 4
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return {"child": os.waitstatus_to_exitcode(status)}


if __name__ == "__main__":
    library, mode, *arguments = sys.argv[1:]
    try:
        modes = {"run": run, "cycles": cycles, "soak": soak, "faults": faults, "fork": fork}
        modes |= {"threads": shared_by_threads, "thread_exit": thread_exit, "one_output": one_output}
        result = modes[mode](library, *arguments)
    except Exception as error:
        result = {"error": str(error)}
    print(json.dumps({"onnxruntime": ort.__version__} | result))
