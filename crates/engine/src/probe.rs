//! A look into the forward pass while it computes.
//!
//! For: tests that hold each stage against another implementation's (`src/tests`). What a probe
//! is shown it may change, so that a stage can be given the other's input, or a wrong one.
//! Must never: cost anything where nobody looks: [`Nobody`] compiles to nothing.
//! Relies on: the networks calling it after each stage, in order.

/// What the values are that a probe is shown, all f32 and `[rows, …]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// The residual stream before the first layer, `[rows, width]`.
    Embedded,
    /// What queries, keys and values are made of, `[rows, width]`. GPT-2 only: elsewhere the norm
    /// is a part of the product.
    AttentionNorm,
    /// Queries, keys and values, `[rows, (h + 2 kv) * dim]`: GPT-2's with their bias, others'
    /// without.
    Qkv,
    /// The same after bias, head norms and rotation. Keys and values are in the cache by now.
    Turned,
    /// The heads' results side by side, `[rows, h * dim]`.
    Mixed,
    /// What attention adds to the residual stream, `[rows, width]`. GPT-2 only.
    Attention,
    /// The residual stream between attention and feed-forward, `[rows, width]`.
    Middle,
    /// What the feed-forward layer reads, `[rows, width]`. GPT-2 only.
    FeedForwardNorm,
    /// Its inside before the activation function, `[rows, ff]`. GPT-2 only.
    Hidden,
    /// Its inside after it, `[rows, ff]`.
    Active,
    /// What it adds to the residual stream, `[rows, width]`. GPT-2 only.
    FeedForward,
    /// The residual stream after the layer, `[rows, width]`.
    Out,
    /// The last norm's result, `[wanted rows, width]`; the layer is the number of layers.
    State,
    /// `[wanted rows, vocab]`; the layer is the number of layers.
    Logits,
}

/// Who watches a forward pass.
pub(crate) trait Probe {
    /// `values` are what `stage` of `layer` has given; what is in them afterwards counts.
    fn see(&mut self, stage: Stage, layer: usize, values: &mut [f32]);
}

/// Nobody watches.
pub(crate) struct Nobody;

impl Probe for Nobody {
    #[inline(always)]
    fn see(&mut self, _stage: Stage, _layer: usize, _values: &mut [f32]) {}
}
