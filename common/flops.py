"""Operations that Luna's formulas need, from its configuration alone."""

from modeling_luna import LunaConfig


def forward_products(config: LunaConfig, rows: int, length: int, labelled: int) -> dict[str, int]:
    """Multiply-adds of the forward pass over some rows, by part: matrix products and the convolution.

    A row counts as one document, padding included: where it holds several, each has its own P, and the true number is
    a little larger.

    Args:
        rows, length: of the batch.
        labelled: tokens that are predicted.
    """
    tokens = rows * length
    hidden = config.hidden_size
    slots = min(config.projection_length, length) if config.dynamic_projection else config.projection_length
    keys_and_values = 1 if config.tie_key_value else 2
    # Queries, keys and values of packing; the same of unpacking, and its output projection.
    pack_projections = (rows * slots + keys_and_values * tokens) * hidden**2
    unpack_projections = (2 * tokens + keys_and_values * rows * slots) * hidden**2
    predicted = labelled if config.sparse_prediction else tokens
    return {
        "projections": config.num_hidden_layers * (pack_projections + unpack_projections),
        "pack": config.num_hidden_layers * 2 * tokens * slots * hidden,  # weights and sums
        "unpack": config.num_hidden_layers * 2 * tokens * slots * hidden,
        "FFN": config.num_hidden_layers * 2 * tokens * hidden * config.intermediate_size,
        "convolution": config.num_hidden_layers * tokens * hidden * config.conv_kernel_size,
        "head": predicted * (hidden**2 + hidden * config.vocab_size),
    }


def training_flops(config: LunaConfig, rows: int, length: int, labelled: int) -> int:
    """Floating-point operations of the forward and backward pass over some rows, one multiply-add being two.

    What gradient checkpointing computes again does not count. The arguments are those of `forward_products`.
    """
    forward = sum(forward_products(config, rows, length, labelled).values())
    return 3 * 2 * forward  # backward is two products for each of forward
