"""Triton kernels of a decoder layer for a few tokens: each is a product or an attention with all that surrounds it.

A forward of a few tokens is bound by reading weights, and for small models by the number of kernels. So a layer is five
kernels: norm and qkv product; qk norm, rotary embedding, cache and attention; output product and residual; norm,
gate-up product and activation; down product and residual. All sums run in an order that depends on the device and the
shapes of the weights alone: neither on the number of tokens nor on where the forward begins. So a token's bits are the
same alone and among others.

`TRITON_INTERPRET=1` runs them on CPU, for the tests.

Shapes: T = tokens, at most `TOKENS`; the others as in static_forward.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

TOKENS: tl.constexpr = tl.constexpr(16)  # rows of a matrix unit's tile


@triton.jit
def _finite(x):
    return tl.where((x == x) & (tl.abs(x) < float("inf")), x, 0.0)


@triton.jit
def _sums(
    x_at, weight_at, up_at, norm_at, present, inside, first, end,
    NORM: tl.constexpr, WEIGHTED: tl.constexpr, GATED: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """Sum up columns first to end of weight @ x and up @ x [BLOCK_OUT, TOKENS], and of x^2 [TOKENS]."""
    total = tl.zeros([BLOCK_OUT, TOKENS], dtype=tl.float32)
    up_total = tl.zeros([BLOCK_OUT, TOKENS], dtype=tl.float32)
    squares = tl.zeros([TOKENS], dtype=tl.float32)
    for start in range(first, end, BLOCK_IN):
        left = tl.arange(0, BLOCK_IN) < end - start
        if EVEN:
            x = tl.load(x_at + start, mask=present, other=0.0)
            weight = tl.load(weight_at + start, mask=inside, other=0.0)
        else:
            x = tl.load(x_at + start, mask=present & left[:, None], other=0.0)
            weight = tl.load(weight_at + start, mask=inside & left[None, :], other=0.0)
        if NORM:
            wide = x.to(tl.float32)
            squares += tl.sum(wide * wide, axis=0)
            if WEIGHTED:
                factor = tl.load(norm_at + start, mask=left, other=0.0)
                x = (wide * factor.to(tl.float32)[:, None]).to(x.dtype)
        total = tl.dot(weight, x, total, input_precision="ieee")
        if GATED:
            if EVEN:
                weight = tl.load(up_at + start, mask=inside, other=0.0)
            else:
                weight = tl.load(up_at + start, mask=inside & left[None, :], other=0.0)
            up_total = tl.dot(weight, x, up_total, input_precision="ieee")
    return total, up_total, squares


@triton.jit
def _shared_sums(
    total, squares, part_at, squares_at, arrived_at, keep, split, part_size, NORM: tl.constexpr, SPLITS: tl.constexpr
):
    """Store a part of some sums; returns True and the whole sums in the program that is the last to do so."""
    tl.store(part_at + split * part_size, total, mask=keep)
    if NORM:
        tl.store(squares_at + split * TOKENS, squares)
    tl.debug_barrier()  # all threads have stored before one says so
    is_last = tl.atomic_add(arrived_at, 1, sem="acq_rel") == SPLITS - 1
    if is_last:
        total = tl.zeros_like(total)
        squares = tl.zeros_like(squares)
        for i in range(SPLITS):  # from L2: other multiprocessors wrote them
            total += tl.load(part_at + i * part_size, mask=keep, other=0.0, cache_modifier=".cg")
            if NORM:
                squares += tl.load(squares_at + i * TOKENS, cache_modifier=".cg")
        tl.store(arrived_at, 0)
    return is_last, total, squares


@triton.jit
def product_kernel(
    x_ptr, weight_ptr, norm_ptr, bias_ptr, residual_ptr, out_ptr, part_ptr, squares_ptr, arrived_ptr,
    tokens, size_in, size_out, weight_stride, split_length, lane_size, norm_scale, norm_eps,
    NORM: tl.constexpr, WEIGHTED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, GATED: tl.constexpr,
    EVEN: tl.constexpr, SPLITS: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """Compute norm(x) @ weight.T, with bias, activation and residual.

    One program: BLOCK_OUT columns of all tokens, and one of SPLITS parts of the sum. The last program to finish adds up
    the parts, in their order.

    Args:
        x_ptr, residual_ptr, out_ptr: [T, size_in], [T, size_out], [T, size_out].
        weight_ptr, weight_stride: [rows, size_in], which may be columns of a wider matrix, and its row's length.
        norm_ptr, bias_ptr: [size_in], if WEIGHTED, and [rows], if BIAS.
        part_ptr, squares_ptr, arrived_ptr: [SPLITS, T, size_out], [programs, SPLITS, TOKENS] and [programs] int32, 0.
        split_length: columns of x that one program sums up, a multiple of BLOCK_IN.
        norm_scale, norm_eps: x is normed, if NORM, by rsqrt(norm_scale * (sum of squares) + norm_eps).
        lane_size: I; if GATED, the result is silu(gate) * up, and a lane's rows are I of gate and I of up.
        EVEN: size_in is a multiple of BLOCK_IN.
    """
    n = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    t = tl.arange(0, TOKENS)
    k = tl.arange(0, BLOCK_IN)
    row = n.to(tl.int64)
    if GATED:
        row = row + (n // lane_size) * lane_size
    inside, present = (n < size_out)[:, None], (t < tokens)[None, :]
    keep = inside & present
    x_at = x_ptr + t[None, :] * size_in + k[:, None]
    weight_at = weight_ptr + row[:, None] * weight_stride + k[None, :]
    up_at = weight_at + lane_size.to(tl.int64) * weight_stride
    first = tl.program_id(1) * split_length
    end = tl.minimum(first + split_length, size_in)
    total, up_total, squares = _sums(
        x_at, weight_at, up_at, norm_ptr + k, present, inside, first, end,
        NORM, WEIGHTED, GATED, EVEN, BLOCK_OUT, BLOCK_IN,
    )  # fmt: skip
    at = t[None, :] * size_out + n[:, None]
    if SPLITS > 1:
        squares_at = squares_ptr + tl.program_id(0) * SPLITS * TOKENS + t
        arrived_at, split = arrived_ptr + tl.program_id(0), tl.program_id(1)
        part_size = tokens * size_out
        is_last, total, squares = _shared_sums(
            total, squares, part_ptr + at, squares_at, arrived_at, keep, split, part_size, NORM, SPLITS
        )
        keep = keep & (t * 0 + is_last.to(tl.int32) == 1)[None, :]
    if NORM:
        scale = tl.rsqrt(squares * norm_scale + norm_eps)
        total = total * scale[None, :]
        up_total = up_total * scale[None, :]
    if BIAS:
        total += tl.load(bias_ptr + row, mask=n < size_out, other=0.0).to(tl.float32)[:, None]
        if GATED:
            up_total += tl.load(bias_ptr + row + lane_size, mask=n < size_out, other=0.0).to(tl.float32)[:, None]
    if GATED:
        total = total / (1.0 + tl.exp(-total)) * up_total
    if RESIDUAL:
        total += tl.load(residual_ptr + at, mask=keep, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=keep)


@triton.jit
def _rotated(x, norm_at, rope_at, mask, eps, HEAD: tl.constexpr, NORM: tl.constexpr, DTYPE: tl.constexpr):
    """Norm heads [R, D] and apply the rotary embedding, whose pairs are next to each other; DTYPE, finite."""
    ROWS: tl.constexpr = x.shape[0]
    x = x.to(tl.float32)
    d = tl.arange(0, HEAD)
    if NORM:
        factor = tl.load(norm_at + d[None, :], mask=mask, other=0.0).to(tl.float32)
        x = (x * tl.rsqrt(tl.sum(x * x, axis=1) / HEAD + eps)[:, None] * factor).to(DTYPE).to(tl.float32)
    real, imaginary = tl.split(tl.reshape(x, [ROWS, HEAD // 2, 2]))
    pair = tl.arange(0, HEAD // 2)
    cos = tl.load(rope_at + 2 * pair[None, :], mask=mask, other=0.0)
    sin = tl.load(rope_at + 2 * pair[None, :] + 1, mask=mask, other=0.0)
    return tl.interleave(real * cos - imaginary * sin, real * sin + imaginary * cos).to(DTYPE)


@triton.jit
def _write_entries(
    qkv_at, cache_at, rope_ptr, norm_at, kv_head, first, low, high, tokens, token_stride, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD: tl.constexpr, NORM: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Write the cache entries, for one key head, of the tokens at positions low to high."""
    t, d = tl.arange(0, TOKENS), tl.arange(0, HEAD)
    position = first + t
    new = ((t < tokens) & (position >= low) & (position < high))[:, None]
    source = qkv_at + (t * token_stride)[:, None] + d[None, :]
    key = tl.load(source + (HEADS + kv_head) * HEAD, mask=new, other=0.0)
    rope_at = rope_ptr + (position * HEAD)[:, None]
    key = _rotated(key, norm_at + (HEADS + kv_head) * HEAD, rope_at, new, eps, HEAD, NORM, DTYPE)
    value = tl.load(source + (HEADS + KV_HEADS + kv_head) * HEAD, mask=new, other=0.0)
    target = cache_at + (position.to(tl.int64) * 2 * KV_HEADS * HEAD)[:, None] + d[None, :]
    tl.store(target, _finite(key), mask=new)
    tl.store(target + KV_HEADS * HEAD, _finite(value), mask=new)


@triton.jit
def attention_kernel(
    qkv_ptr, cache_ptr, rope_ptr, positions_ptr, norm_ptr, out_ptr, peak_ptr, weight_ptr,
    tokens, lanes, lane_stride, part_length, scale, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    NORM: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Write the tokens' cache entries and attend to all positions up to their own.

    One program: the query heads of one key head over `part_length` positions, whose new entries it writes.

    Args:
        qkv_ptr, positions_ptr: [T, W, N + 2K, D] and [T], consecutive.
        cache_ptr, lane_stride: [W, C, 2K, D], and elements from one layer to the next.
        rope_ptr, norm_ptr: [C, D / 2, 2] float32, and [W, N + K, D], if NORM.
        out_ptr: [T, W, N, D], or, if PARTS, for `join_kernel`: [parts, T, W, N, D] float32.
        peak_ptr, weight_ptr: if PARTS, [parts, T, W, N] float32.
        ROWS, BLOCK: a power of two, T G or more; positions at once.
    """
    lane, kv_head = tl.program_id(0) // KV_HEADS, tl.program_id(0) % KV_HEADS
    DTYPE: tl.constexpr = qkv_ptr.dtype.element_ty
    first, d = tl.load(positions_ptr), tl.arange(0, HEAD)
    low = tl.program_id(1) * part_length
    high = tl.minimum(low + part_length, first + tokens)
    cache_at = cache_ptr + lane.to(tl.int64) * lane_stride + kv_head * HEAD
    qkv_at, norm_at = qkv_ptr + lane * (HEADS + 2 * KV_HEADS) * HEAD, norm_ptr + lane * (HEADS + KV_HEADS) * HEAD
    stride = lanes * (HEADS + 2 * KV_HEADS) * HEAD  # from token to token
    _write_entries(
        qkv_at, cache_at, rope_ptr, norm_at, kv_head, first, low, high, tokens, stride, eps,
        HEADS, KV_HEADS, HEAD, NORM, DTYPE,
    )  # fmt: skip
    tl.debug_barrier()  # the loop below reads them
    r = tl.arange(0, ROWS)
    token, head = r // (HEADS // KV_HEADS), kv_head * (HEADS // KV_HEADS) + r % (HEADS // KV_HEADS)
    last, used = first + token, (token < tokens)[:, None]
    query = tl.load(qkv_at + (token * stride + head * HEAD)[:, None] + d[None, :], mask=used, other=0.0)
    norm_at += (head * HEAD)[:, None]
    query = _rotated(query, norm_at, rope_ptr + (last * HEAD)[:, None], used, eps, HEAD, NORM, DTYPE)
    peak, weight = tl.full([ROWS], float("-inf"), dtype=tl.float32), tl.zeros([ROWS], dtype=tl.float32)
    mixed = tl.zeros([ROWS, HEAD], dtype=tl.float32)
    for start in range(low, high, BLOCK):
        s = start + tl.arange(0, BLOCK)
        at = cache_at + (s.to(tl.int64) * 2 * KV_HEADS * HEAD)[:, None] + d[None, :]
        keys = tl.load(at, mask=(s < high)[:, None], other=0.0)
        values = tl.load(at + KV_HEADS * HEAD, mask=(s < high)[:, None], other=0.0)
        scores = tl.dot(query, tl.trans(keys), input_precision="ieee")
        scores = tl.where(s[None, :] <= last[:, None], scores * scale, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, axis=1))
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        shares, shrink = tl.exp(scores - base[:, None]), tl.exp(peak - base)
        weight = weight * shrink + tl.sum(shares, axis=1)
        mixed = tl.dot(shares.to(DTYPE), values, mixed * shrink[:, None], input_precision="ieee")
        peak = new_peak
    place = (token * lanes + lane) * HEADS + head
    if PARTS:
        place += tl.program_id(1) * tokens * lanes * HEADS
        tl.store(peak_ptr + place, peak, mask=token < tokens)
        tl.store(weight_ptr + place, weight, mask=token < tokens)
    else:
        mixed = mixed / weight[:, None]
    tl.store(out_ptr + (place * HEAD)[:, None] + d[None, :], mixed.to(out_ptr.dtype.element_ty), mask=used)


@triton.jit
def join_kernel(
    mixed_ptr,  # [parts, T, W, N, D] float32
    peak_ptr,  # [parts, T, W, N] float32
    weight_ptr,  # [parts, T, W, N] float32
    out_ptr,  # [T, W, N, D]
    parts,
    rows,  # T W N
    HEAD: tl.constexpr,
    MAX_PARTS: tl.constexpr,  # a power of two
):
    """Join the parts of an attention. One program: one head of one token. A part without positions has weight 0."""
    row = tl.program_id(0)
    part = tl.arange(0, MAX_PARTS)
    d = tl.arange(0, HEAD)
    at = part * rows + row
    peak = tl.load(peak_ptr + at, mask=part < parts, other=float("-inf"))
    share = tl.exp(peak - tl.max(peak, axis=0))
    weight = tl.load(weight_ptr + at, mask=part < parts, other=0.0)
    mixed = tl.load(mixed_ptr + at.to(tl.int64)[:, None] * HEAD + d[None, :], mask=(part < parts)[:, None], other=0.0)
    total = tl.sum(mixed * share[:, None], axis=0) / tl.sum(weight * share, axis=0)
    tl.store(out_ptr + row * HEAD + d, total.to(out_ptr.dtype.element_ty))


@triton.jit
def best_of_block_kernel(
    logits_ptr,  # [V]
    best_ptr,  # [blocks] int64
    peak_ptr,  # [blocks] float32
    weight_ptr,  # [blocks] float32
    vocab,
    BLOCK: tl.constexpr,
):
    """Find the first best of BLOCK logits, and their sum of exponentials over the best one's."""
    block = tl.program_id(0)
    v = block * BLOCK + tl.arange(0, BLOCK)
    logits = tl.load(logits_ptr + v, mask=v < vocab, other=float("-inf")).to(tl.float32)
    peak = tl.max(logits, axis=0)
    tl.store(best_ptr + block, tl.min(tl.where(logits == peak, v, vocab - 1), axis=0).to(tl.int64))
    tl.store(peak_ptr + block, peak)
    tl.store(weight_ptr + block, tl.sum(tl.exp(logits - peak), axis=0))


@triton.jit
def best_kernel(
    best_ptr,  # [blocks] int64
    peak_ptr,  # [blocks] float32
    weight_ptr,  # [blocks] float32
    found_ptr,  # [2, slots] float64: ids and log-probabilities
    token_ptr,  # [1] int64
    position_ptr,  # [1] int64
    slot_ptr,  # [1] int64
    blocks,
    slots,
    BLOCKS: tl.constexpr,  # a power of two
):
    """Choose the best token, store it and its log-probability in a slot, and step to the next position and slot."""
    i = tl.arange(0, BLOCKS)
    peaks = tl.load(peak_ptr + i, mask=i < blocks, other=float("-inf"))
    peak = tl.max(peaks, axis=0)
    weight = tl.sum(tl.load(weight_ptr + i, mask=i < blocks, other=0.0) * tl.exp(peaks - peak), axis=0)
    first = tl.min(tl.where(peaks == peak, i, blocks - 1), axis=0)
    token = tl.load(best_ptr + first)
    slot = tl.load(slot_ptr)
    tl.store(token_ptr, token)
    tl.store(found_ptr + slot, token.to(tl.float64))
    tl.store(found_ptr + slots + slot, -tl.log(weight).to(tl.float64))
    tl.store(slot_ptr, slot + 1)
    tl.store(position_ptr, tl.load(position_ptr) + 1)
