"""Documents of the embedded decoder's corpus that its pretraining did not draw."""

from qgoft.pocket.language.knowledge import decoder_document
from qgoft.pocket.language.world import World


def unseen_documents(count: int) -> list[str]:
    """Return documents of the same distribution, by a seed of their own. Short ones, such as a plural, may occur in the corpus too."""
    world = World("pocket/corpus/decoder/retention")
    return [" ".join(decoder_document(world, frozenset())) for _ in range(count)]
