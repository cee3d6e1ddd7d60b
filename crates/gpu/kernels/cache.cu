// The table of a cache of rows: which key has which slot. Sets of 32 ways, one way a lane of a
// warp; of each slot a digest of 8 bits (0: vacant), the key, its table and the step that took it
// last. Who is evicted is told, and the caller demotes what lay there: rows move by lists of
// addresses, from wherever they lie to wherever they shall. One launch serves rows of all lengths:
// each length has sets of its own, and the keys, or the moves, of one stand side by side.
//
// No lock and no atomic: a launch that inserts has one warp for all keys of a set, which come in
// groups, so that the outcome depends on nothing but the order of the keys. Compiled at run time by
// NVRTC, and for the CPU by shim/kernels.h.

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

#define ALL_OF_A_WARP 0xffffffffu
#define WARP_THREADS 32u
#define WAYS 32u
#define NO_SLOT 0xffffffffu
#define NO_TABLE 0xffffffffu

// As in crates/table.
__device__ __forceinline__ u64 mixed(u64 x) {
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

__device__ __forceinline__ u64 hash_of(u32 table, u64 key) {
    return mixed(mixed(table) ^ key);
}

// Keys from place `begin` on that have so many sets from `set` on.
struct Span {
    u32 begin, set, sets;
};

__device__ __forceinline__ u32 set_of(u64 hash, Span span) {
    return span.set + (u32)((hash >> 32) * span.sets >> 32);
}

__device__ __forceinline__ u8 digest_of(u64 hash) {
    return (u8)(1 + (hash & 0xffffffff) % 255);
}

// slots[i] = where key i is, or NO_SLOT; what is found is taken by step `now`, unless that is 0: a
// look that is no use.
// keys, tables, slots: [n]; digests, keys_held, tables_held, steps: [all sets, WAYS]
extern "C" __global__ void find_slots(
    const u64* __restrict__ keys, const u32* __restrict__ tables, u64 n,
    const u8* __restrict__ digests, const u64* __restrict__ keys_held,
    const u32* __restrict__ tables_held, u32* __restrict__ steps, const Span* __restrict__ spans,
    u32 n_spans, u32 now, u32* __restrict__ slots) {
    const u32 lane = threadIdx.x % WARP_THREADS;
    const u64 warps = (u64)gridDim.x * (blockDim.x / WARP_THREADS);
    const u64 first = (u64)blockIdx.x * (blockDim.x / WARP_THREADS) + threadIdx.x / WARP_THREADS;
    for (u64 at = first; at < n; at += warps) {
        const u64 key = keys[at], hash = hash_of(tables[at], key);
        const u32 slot = set_of(hash, piece_at(spans, n_spans, at)) * WAYS + lane;
        const bool mine = digests[slot] == digest_of(hash) && keys_held[slot] == key &&
            tables_held[slot] == tables[at];
        const u32 found = __ballot_sync(ALL_OF_A_WARP, mine);
        if (mine) {
            slots[at] = slot;
            if (now != 0) steps[slot] = now;
        }
        if (found == 0 && lane == 0) slots[at] = NO_SLOT;
    }
}

// A slot for each key, none of which has one: a vacant one of its set, the first of them; else
// that of the row that was taken longest ago, the first of them, but none that was taken at
// `floor` or later, for those are staged. Where there is none the key gets NO_SLOT: its row stays
// in the host's memory. The keys of a group are of one set, which is told, no key twice, and no
// set has two groups. starts: [groups + 1]; sets: [groups]; keys, tables, slots, evicted_keys,
// evicted_tables: [starts' last]
extern "C" __global__ void insert_slots(
    const u32* __restrict__ starts, u64 groups, const u64* __restrict__ keys,
    const u32* __restrict__ tables, u8* __restrict__ digests, u64* __restrict__ keys_held,
    u32* __restrict__ tables_held, u32* __restrict__ steps, const u32* __restrict__ sets, u32 now,
    u32 floor,
    u32* __restrict__ slots, u64* __restrict__ evicted_keys, u32* __restrict__ evicted_tables) {
    const u32 lane = threadIdx.x % WARP_THREADS;
    const u64 warps = (u64)gridDim.x * (blockDim.x / WARP_THREADS);
    const u64 first = (u64)blockIdx.x * (blockDim.x / WARP_THREADS) + threadIdx.x / WARP_THREADS;
    for (u64 group = first; group < groups; group += warps) {
        const u32 start = starts[group], end = starts[group + 1];
        if (start == end) continue;
        const u32 slot = sets[group] * WAYS + lane;
        bool vacant = digests[slot] == 0;
        u32 step = steps[slot];
        u64 key_held = keys_held[slot];
        u32 table_held = tables_held[slot];
        for (u32 at = start; at < end; at++) {
            // the least of (vacant first, step, lane); what is staged is no candidate
            u64 rank = vacant ? lane : ((u64)step + 1) << 32 | lane;
            if (!vacant && step >= floor) rank = ~0ull;
            u64 least = rank;
#pragma unroll
            for (u32 bits = WARP_THREADS / 2; bits > 0; bits /= 2) {
                const u64 other = __shfl_xor_sync(ALL_OF_A_WARP, least, bits);
                least = other < least ? other : least;
            }
            if (least == ~0ull) {
                if (lane == 0) {
                    slots[at] = NO_SLOT;
                    evicted_tables[at] = NO_TABLE;
                }
                continue; // all lanes do, for all have the same least
            }
            if (rank != least) continue; // they meet again at the next key's shuffle
            slots[at] = slot;
            evicted_keys[at] = key_held;
            evicted_tables[at] = vacant ? NO_TABLE : table_held;
            vacant = false;
            step = now;
            key_held = keys[at];
            table_held = tables[at];
            digests[slot] = digest_of(hash_of(table_held, key_held));
            keys_held[slot] = key_held;
            tables_held[slot] = table_held;
            steps[slot] = step;
        }
    }
}

// Makes slots vacant; NO_SLOT stands for none. slots: [n]
extern "C" __global__ void clear_slots(
    const u32* __restrict__ slots, u64 n, u8* __restrict__ digests) {
    const u64 stride = (u64)gridDim.x * blockDim.x;
    for (u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x; at < n; at += stride) {
        if (slots[at] != NO_SLOT) digests[slots[at]] = 0;
    }
}

// Rows of one length that move, from place `row` of the lists on: their parts, `parts` a row, count
// from `begin` on, fewer than 2^32. A part is four floats, or one.
struct Moves {
    u64 begin;
    u32 row, parts, by_four, unused;
};

// The row at to[i] becomes that at from[i]. No row is written twice, and none that is written is
// read. total: parts of all rows; from, to: [rows]
extern "C" __global__ void move_rows(
    const u64* __restrict__ from, const u64* __restrict__ to, const Moves* __restrict__ moves,
    u32 n_moves, u64 total) {
    copy_parts(total, [=](u64 at) -> RowPart {
        const Moves of = piece_at(moves, n_moves, at);
        const u32 within = (u32)(at - of.begin);
        const u32 row = of.row + within / of.parts, part = within % of.parts;
        const u32 floats = of.by_four != 0 ? 4 * part : part;
        const float* source = reinterpret_cast<const float*>(from[row]) + floats;
        return {source, reinterpret_cast<float*>(to[row]) + floats, of.by_four != 0};
    });
}
