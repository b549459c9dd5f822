// Matrix fragments and asynchronous copies.
#include "device.cuh"

using namespace ratplus;

struct ProductParams {
    // [16, 16]
    const void* a;
    // [16, 8], or its transpose [8, 16]
    const void* b;
    // [16, 8], added to
    float* c;
    i32 b_transposed;
};

template <typename T>
inline void product(const ProductParams& p) {
    T* const a = reinterpret_cast<T*>(shared_memory());
    T* const b = a + 256;
    const u32 lane = thread_index();
    for (u32 i = lane; i < 32; i += WARP) {
        copy_async16(a + 8 * i, static_cast<const T*>(p.a) + 8 * i, true);
    }
    if (lane < 16) {
        copy_async16(b + 8 * lane, static_cast<const T*>(p.b) + 8 * lane, true);
    }
    copy_async_commit();
    copy_async_wait<0>();
    warp_barrier();
    u32 fa[4];
    // Blocks: rows 0 to 7, rows 8 to 15, then the same in columns 8 to 15.
    load_blocks(fa, a + (lane % 8 + lane / 8 % 2 * 8) * 16 + lane / 16 * 8);
    u32 fb[4];
    if (p.b_transposed != 0) {
        // b's rows are columns of the product: two blocks of k, twice.
        load_blocks(fb, b + lane % 8 * 16 + lane / 8 % 2 * 8);
    } else {
        load_blocks_transposed(fb, b + (lane % 8 + lane / 8 % 2 * 8) * 8);
    }
    float c[4];
    for (u32 i = 0; i < 4; ++i) {
        c[i] = p.c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2];
    }
    multiply_blocks<T>(c, fa, fb[0], fb[1]);
    for (u32 i = 0; i < 4; ++i) {
        p.c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = c[i];
    }
}

RATPLUS_KERNEL(test_product_bf16, ProductParams, 32, 1) { product<bf16>(p); }
RATPLUS_KERNEL(test_product_f16, ProductParams, 32, 1) { product<f16>(p); }

struct CopyParams {
    const float* in;
    float* out;
    // Elements of a stage, 4 a thread.
    i32 stages;
    // Elements of `in`; zeros follow.
    i32 length;
    // Leaves out the barrier before a buffer is read, or before it is overwritten.
    i32 mistake;
};

// Through two buffers; each thread writes what its neighbour copied.
RATPLUS_KERNEL(test_copy, CopyParams, 128, 1) {
    float* const buffers = reinterpret_cast<float*>(shared_memory());
    const i32 stage_length = 4 * static_cast<i32>(block_threads());
    const auto fetch = [&](i32 stage) {
        if (stage < p.stages) {
            const i32 at = stage * stage_length + 4 * static_cast<i32>(thread_index());
            const bool valid = at < p.length;
            copy_async16(buffers + stage % 2 * stage_length + 4 * thread_index(), p.in + (valid ? at : 0), valid);
        }
        copy_async_commit();
    };
    fetch(0);
    for (i32 stage = 0; stage < p.stages; ++stage) {
        fetch(stage + 1);
        copy_async_wait<1>();
        if (p.mistake != 1) {
            block_barrier();
        }
        const u32 neighbour = (thread_index() + 1) % block_threads();
        const i32 at = stage * stage_length + 4 * static_cast<i32>(neighbour);
        store16(p.out + at, load16(buffers + stage % 2 * stage_length + 4 * neighbour));
        if (p.mistake != 2) {
            block_barrier();
        }
    }
}
