//! GradCache (Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup"): a pass without
//! gradients for the embeddings of all chunks, then, when the loss has given theirs, one with gradients, a chunk at a time. One
//! chunk alone is encoded once.

use crate::{
    collective::Collective,
    trainer::{
        error::TrainerError,
        parameters::FlatParameters,
        timeline::{Section, Timeline},
    },
};
use tch::Tensor;

/// The chunks of a local slice. `encode` gives the same for a chunk whenever it is called.
pub(super) struct GradCache<'a, E> {
    encode: &'a dyn Fn(usize) -> E,
    chunks: usize,
    /// The one chunk with its graph; absent when there are several.
    retained: Option<E>,
}

impl<'a, E> GradCache<'a, E> {
    /// Encodes all chunks; what `local` makes of them is returned, and nothing else of several is kept.
    pub(super) fn first_pass<L>(
        chunks: usize,
        encode: &'a dyn Fn(usize) -> E,
        local: impl FnOnce(&[E]) -> L,
    ) -> (Self, L) {
        if chunks == 1 {
            let only = encode(0);
            let made = local(std::slice::from_ref(&only));
            return (Self { encode, chunks, retained: Some(only) }, made);
        }
        let made = local(&tch::no_grad(|| (0..chunks).map(encode).collect::<Vec<_>>()));
        (Self { encode, chunks, retained: None }, made)
    }

    /// Adds every chunk's gradients to the parameters', and sums them over all ranks behind the last chunk's pass.
    /// `scalar` is of a chunk's embeddings the sum of their products with their gradients: its gradient is theirs, chained
    /// through the model.
    ///
    /// # Errors
    /// When a peer fails.
    pub(super) fn second_pass(
        self,
        scalar: impl Fn(&E, usize) -> Tensor,
        parameters: &mut FlatParameters,
        collective: &dyn Collective,
        timeline: &mut Timeline,
    ) -> Result<(), TrainerError> {
        let Self { encode, chunks, retained } = self;
        let backward = |chunk: usize| match &retained {
            Some(only) => scalar(only, chunk).backward(),
            None => scalar(&encode(chunk), chunk).backward(),
        };
        let last = chunks - 1;
        (0..last).for_each(backward);
        // Every chunk adds to the same gradients: they are complete, and can be reduced, in the last one's pass alone.
        parameters.reduce_behind(collective, || backward(last), || timeline.lap(Section::Backward))?;
        timeline.lap(Section::Reduce);
        Ok(())
    }
}
