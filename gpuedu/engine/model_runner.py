"""The model over a batch of unlike requests: linear layers over all tokens together, attention by request.

That is Orca's selective batching, and the keys and values lie in blocks.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from gpuedu.llama import Llama, rotate

from .batch import AttentionCall, Batch
from .kv_cache import PagedKVCache


class ModelRunner:
    """Computes batches.

    Parameters
    ----------
    model : Llama
        Linear layers may have been replaced by quantized ones.
    cache : PagedKVCache
        On the model's device.

    References
    ----------
    Yu et al. Orca: a distributed serving system for transformer-based generative models. OSDI 2022,
    section 3.2.
    """

    def __init__(self, model: Llama, cache: PagedKVCache) -> None:
        self.model = model
        self.cache = cache
        positions = torch.arange(model.config.context_length, device=model.embed_tokens.weight.device)
        with torch.no_grad():
            self._cos, self._sin = (angles[:, None] for angles in model.rotary(positions))

    @torch.inference_mode()
    def execute(self, batch: Batch) -> torch.Tensor:
        """Compute a batch, and keep its keys and values.

        Parameters
        ----------
        batch : Batch
            Laid out by :func:`make_batch`.

        Returns
        -------
        Tensor
            Logits of the requests that produce a token, (len(batch.sampled), vocab_size).

        Notes
        -----
        In each layer all keys and values are written before anything is read: a request may look at a
        prefix that another one computes in the same iteration.
        """
        model = self.model
        if len(batch.begun):
            self.cache.clear(batch.begun)
        hidden = model.embed_tokens(batch.ids)
        rotary = self._cos[batch.positions], self._sin[batch.positions]
        for number, layer in enumerate(model.layers):
            mixed = self._attention(number, layer.input_layernorm(hidden), rotary, batch)
            hidden = hidden + layer.self_attn.o_proj(mixed)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return model.lm_head(model.norm(hidden[batch.sampled_rows]))

    def _attention(
        self, number: int, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], batch: Batch
    ) -> torch.Tensor:
        """What each token gathers from its request's tokens so far, (tokens, heads * head_dim)."""
        module = self.model.layers[number].self_attn
        q, k, v = (
            project(x).unflatten(-1, (-1, module.head_dim))
            for project in (module.q_proj, module.k_proj, module.v_proj)
        )
        q, k = rotate(q, rotary), rotate(k, rotary)
        self.cache.write(number, batch.slots, k, v)
        mixed = [self._one_call(number, call, q, k, v) for call in batch.calls]
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)

    def _one_call(
        self, number: int, call: AttentionCall, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        """Attention for some rows, (rows, heads * head_dim)."""
        kv_heads, q = k.shape[1], q[call.rows]
        if call.blocks is None:
            keys, values = (new[call.rows].transpose(0, 1)[None] for new in (k, v))
        else:
            keys, values = self.cache.gather(number, call.blocks, call.requests)
        if call.requests > 1 or len(q) == 1:
            # The query heads of one KV head stand as rows of one matrix
            grouped = q.unflatten(1, (kv_heads, -1))
            out = functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=call.mask)
            return out.flatten(1)
        out = functional.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            keys,
            values,
            attn_mask=call.mask,
            is_causal=call.mask is None,
            enable_gqa=q.shape[1] != kv_heads,
        )
        return out[0].transpose(0, 1).flatten(1)
