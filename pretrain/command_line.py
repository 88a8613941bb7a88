"""The configuration of a run as the command line names it: a YAML file, with `--key value` overrides."""

from common.config.yaml_config import read_configuration
from pretrain.configuration import PretrainConfig


def load_config(arguments: list[str], about: str = "") -> PretrainConfig:
    """Read `FILE.yaml --key value ...`; values are YAML, keys below `model` are written `--model.KEY`.

    Args:
        about: what `--help` prints before the keys.

    Raises:
        ConfigurationError: for a file that is not there or not YAML, an unknown key (with the nearest known one), or
            a value that makes no sense.
    """
    config = read_configuration(PretrainConfig, arguments, {"model": None}, about)
    config.validate()
    if config.init_from is None:
        # Imported here, since it takes seconds that `--help` and the processes of `python-docs` need not wait for.
        from pretrain.models.configuration import model_configuration

        model_configuration(config, vocab_size=None if config.tokenizer else config.vocab_size)
    return config
