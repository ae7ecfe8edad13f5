"""Generative Semantic Segmentation (Chen et al., CVPR 2023) for mmseg: ``custom_imports = dict(imports=["gss"])``.

Latent posterior learning (section 3.2, stage I):

* ``maskige``: X and X^-1, a mask as a picture and back, with a ``palette``.
* ``posterior_learning``: the colors of X, by ``palette_search`` and the round trip of masks (``roundtrip``).
* ``dvae``: q_phi and p_theta, DALL-E's discrete VAE; ``dvae_training``: one of your own, by codes (``quantizer``).

Latent prior learning (section 3.3, stage II):

* ``heads``: I_psi with GSS-FF and GSS-FT-W; ``segmentors``: what mmseg builds around them; ``mseg``: MSeg's data sets.
"""

import warnings

from common.errors import InputError
from common.yapf_cache import write_grammars_whole

write_grammars_whole()
warnings.filterwarnings("ignore", message="Fail to import")  # compiled operators that nothing here needs

from gss import heads, mseg, segmentors  # noqa: E402

__all__ = ["InputError", "heads", "mseg", "segmentors"]
