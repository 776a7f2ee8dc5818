"""A slow, literal implementation of the method, independent of the package. Tests compare the model with it."""

import torch
import torch.nn.functional as F


def _norm(x, layer):
    return F.layer_norm(x, x.shape[-1:], layer.weight, layer.bias, layer.eps)


def _softmax_attention(queries, keys, values, scale):
    return (queries @ keys.T * scale).softmax(-1) @ values


def divided_attention(x, layer, frames, patches, axis):
    """Computes divided attention for one clip `x` (1 + frames * patches, D), one query at a time."""
    heads, width = layer.num_heads, x.shape[-1] // layer.num_heads
    projections = (layer.q_proj, layer.k_proj, layer.v_proj)
    qkv = [F.linear(x, projection.weight, projection.bias) for projection in projections]
    output = torch.zeros_like(x)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        q, k, v = (projected[:, part] for projected in qkv)
        for query in range(len(x)):
            if query == 0:
                keys = list(range(len(x)))
            else:
                frame, patch = divmod(query - 1, patches)
                group = (
                    [t * patches + patch for t in range(frames)]
                    if axis == "time"
                    else [frame * patches + n for n in range(patches)]
                )
                keys = [0] + [1 + i for i in group]
            output[query, part] = _softmax_attention(q[query : query + 1], k[keys], v[keys], width**-0.5)[0]
    return F.linear(output, layer.out_proj.weight, layer.out_proj.bias)


def tokens(model, clip):
    """Returns the sums of patch, space and time embeddings, (1 + T * N, D), of one clip (T, C, H, W)."""
    e, p = model.embeddings, model.config.patch_size
    weight, bias = e.patch_embedding.weight.flatten(1), e.patch_embedding.bias
    rows = [e.cls_token[0, 0] + e.position_embeddings[0, 0]]
    for t, frame in enumerate(clip):
        n = 0
        for i in range(0, frame.shape[1], p):
            for j in range(0, frame.shape[2], p):
                patch = weight @ frame[:, i : i + p, j : j + p].flatten() + bias
                rows.append(patch + e.position_embeddings[0, 1 + n] + e.temporal_embeddings[0, t])
                n += 1
    return torch.stack(rows)


def encoder(model, clip, kept=None):
    """Returns the tokens of one clip after the last block. `kept` are indices of the patches kept in each frame."""
    x = tokens(model, clip)
    frames = len(clip)
    if kept is not None:
        patches = (len(x) - 1) // frames
        x = torch.stack([x[0], *(x[1 + t * patches + n] for t in range(frames) for n in kept)])
    patches = (len(x) - 1) // frames
    for block in model.layers:
        t = x + divided_attention(_norm(x, block.time_norm), block.time_attention, frames, patches, "time")
        s = divided_attention(_norm(t, block.space_norm), block.space_attention, frames, patches, "space")
        y = x + s
        hidden = F.gelu(F.linear(_norm(y, block.mlp_norm), block.mlp.fc1.weight, block.mlp.fc1.bias))
        x = y + F.linear(hidden, block.mlp.fc2.weight, block.mlp.fc2.bias)
    return x


def _conv3x3(features, conv, h, w, kept):
    """Computes a 3 x 3 convolution, (n, D) to (n, out), with zeros outside the grid and for patches not in `kept`."""
    grid = features.new_zeros(h + 2, w + 2, features.shape[-1])
    for n, feature in zip(kept, features):
        grid[1 + n // w, 1 + n % w] = feature
    rows = []
    for n in kept:
        i, j = divmod(int(n), w)
        window = grid[i : i + 3, j : j + 3].permute(2, 0, 1)  # (D, 3, 3)
        rows.append((conv.weight * window).sum((1, 2, 3)) + (0 if conv.bias is None else conv.bias))
    return torch.stack(rows)


def region_module(module, features, h, w, kept=None):
    """
    Computes the region module for the `features` (T, N, D) of one clip, or (T, n, D) of its `kept` patches. Returns
    regions (T * S, D), masks (T, S, N), codes (T, N), and the loss if masks are shares of positions.
    """
    kept = range(h * w) if kept is None else kept
    x, ids, content = features, None, features
    if module.quantizer is not None:
        codes = module.quantizer.embed
        ids = ((features[:, :, None] - codes) ** 2).sum(-1).argmin(-1)
        x = codes[ids].to(features.dtype)
    if module.values == "quantized" or module.aggregation is None:
        content = x
    if module.motion_excitation is not None and len(features) > 1:
        added = []
        for t, frame in enumerate(features):
            difference = frame - features[t - 1] if t else torch.zeros_like(frame)
            weights = _conv3x3(difference, module.motion_excitation.conv, h, w, kept)[:, 0].softmax(0)
            added.append(weights[:, None] * frame)
        x, content = x + torch.stack(added), content + torch.stack(added)
    if module.aggregation is None:
        return x.flatten(0, 1), None, ids, None
    masks = torch.stack([_conv3x3(frame, module.aggregation.conv, h, w, kept).T for frame in x])  # (T, S, N)
    masks = masks.double()
    shares = None
    if module.aggregation.normalization == "positions":
        weights = torch.exp(masks - masks.amax(-1, keepdim=True))
        shares = weights / weights.sum(-1, keepdim=True)
    elif module.aggregation.normalization == "regions":
        weights = torch.exp(masks - masks.amax(1, keepdim=True))
        shares = weights / weights.sum(1, keepdim=True)
    if shares is not None:
        masks = torch.stack([torch.stack([share / share.mean() for share in frame]) for frame in shares])
    masks = masks.to(x.dtype)
    if module.aggregation.pooling == "mean":
        regions = torch.stack([(mask[:, None] * content[t]).mean(0) for t in range(len(x)) for mask in masks[t]])
    elif module.aggregation.pooling == "softmax":
        regions = torch.stack(
            [
                _softmax_gather(share, content[t], module.aggregation.sharpness)
                for t in range(len(x))
                for share in shares[t]
            ]
        )
    else:
        logs = shares.clamp(min=1e-300).log().to(x.dtype)
        regions = torch.stack([(log[:, None] + content[t]).max(0).values for t in range(len(x)) for log in logs[t]])
    for layer in module.interaction:
        inner = _norm(regions, layer.norm) if isinstance(layer.norm, torch.nn.LayerNorm) else regions
        attention = layer.attention
        q, k, v = (F.linear(inner, one.weight) for one in (attention.q_proj, attention.k_proj, attention.v_proj))
        width = q.shape[-1] // attention.num_heads
        heads = [
            _softmax_attention(q[:, i : i + width], k[:, i : i + width], v[:, i : i + width], width**-0.5)
            for i in range(0, q.shape[-1], width)
        ]
        output = F.linear(torch.cat(heads, -1), attention.out_proj.weight, attention.out_proj.bias)
        regions = regions + output if layer.residual else output
        if layer.mlp is not None:
            norm, mlp = layer.mlp
            hidden = F.gelu(F.linear(_norm(regions, norm), mlp.fc1.weight, mlp.fc1.bias))
            regions = regions + F.linear(hidden, mlp.fc2.weight, mlp.fc2.bias)
    loss = region_loss(shares, content) if module.aggregation.normalization == "regions" else None
    return regions, masks, ids, loss


def _normalized(content):
    """Normalizes each feature (..., D) by the mean and the standard deviation of its channels."""
    centered = content.double() - content.double().mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def _softmax_gather(share, content, sharpness):
    """Computes a region (D,) from a frame's `share` (N,) and `content` (N, D), channel by channel, in logarithms."""
    normalized = _normalized(content)
    scale = (normalized.var(0, correction=0).mean() + 1e-6).sqrt()
    channels = []
    for channel, that_weighs in zip(content.double().T, normalized.T):
        scaled = sharpness * (that_weighs - that_weighs.mean()) / scale
        weights = (share.clamp(min=1e-300).log() + scaled).softmax(0)
        channels.append((weights * channel).sum())
    return torch.stack(channels).to(content.dtype)


def region_loss(shares, content):
    """
    Returns the squared distances of the normalized features (T, N, D) to the means of their regions, weighted by
    `shares` (T, S, N), divided by the squared distances to the mean of all features.
    """
    features = _normalized(content)
    within = 0
    for s in range(shares.shape[1]):
        share = shares[:, s, :, None]  # (T, N, 1)
        mean = (share * features).sum((0, 1)) / share.sum()
        within = within + (share * (features - mean) ** 2).sum()
    return within / ((features - features.mean((0, 1))) ** 2).sum()


def _pooled(z, pooling):
    return z[0] + {"cls": 0, "cls_mean": sum(z[1:]) / len(z[1:]), "cls_max": z[1:].max(0).values}[pooling]


def _late_fusion(model, clip, h, w, kept):
    """Encodes frames one by one; only regions (and motion) depend on more than one frame."""
    encoded = torch.stack([encoder(model, frame[None], kept) for frame in clip])  # (T, 1 + N, D)
    states = encoded[:, 1:]
    if model.region_module.quantizer or model.region_module.aggregation:
        states, *_ = region_module(model.region_module, states, h, w, kept)
        states = states.view(len(clip), -1, states.shape[-1])
    features = []
    for x, own in zip(encoded, states):
        z = _norm(torch.cat([x[:1], own]), model.layernorm)
        features.append(_pooled(z, model.config.resolved.video_pooling))
    if model.config.resolved.temporal_fusion == "pool":
        return sum(features) / len(features)
    linear = model.temporal_fusion
    features += [torch.zeros_like(features[0])] * (model.config.num_frames - len(features))
    return linear.weight @ torch.cat(features) + linear.bias


def video_feature(model, clip, kept=None):
    """Returns the feature (D,) of one clip, or of its `kept` patches, computed by the whole video tower."""
    h, w = clip.shape[-2] // model.config.patch_size, clip.shape[-1] // model.config.patch_size
    if model.config.resolved.temporal_fusion != "attention":
        return _late_fusion(model, clip, h, w, kept)
    x = encoder(model, clip, kept)
    states = x[1:]
    if model.region_module.quantizer or model.region_module.aggregation:
        states, *_ = region_module(model.region_module, states.unflatten(0, (len(clip), -1)), h, w, kept)
    z = _norm(torch.cat([x[:1], states]), model.layernorm)
    return _pooled(z, model.config.resolved.video_pooling)
