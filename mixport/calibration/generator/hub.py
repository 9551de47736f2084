"""Pipelines from the Hugging Face hub: fetched once into its own cache, safetensors only, checked before the
weights come.
"""

# diffusers and huggingface_hub leave parts of their interfaces without types, and diffusers loads its names
# lazily.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from pathlib import Path

from mixport.calibration.generator.pipeline_folder import INDEX_FILE, read_pipeline_folder
from mixport.records.errors import BadInputError, MixportError

_LOCAL = "check the spelling, or give a local folder: --generator DIR"


def hub_folder(repository: str, *, revision: str | None) -> Path:
    """The local folder of a pipeline on the hub, fetched where it is not there yet.

    Raises:
        BadInputError: no such pipeline or revision, the hub cannot be reached, or the pipeline brings code or
            unsafe weights.
    """
    from huggingface_hub import errors as hub_errors
    from huggingface_hub import hf_hub_download

    where = repository if revision is None else f"{repository} at revision {revision}"
    try:
        index = hf_hub_download(repository, INDEX_FILE, revision=revision)
        # Gigabytes come only for what may be loaded.
        read_pipeline_folder(Path(index).parent)
        return _download(repository, revision=revision)
    except MixportError:
        raise
    except hub_errors.GatedRepoError as error:
        raise BadInputError(
            f"generator {where} asks for a login: its owner limits access", hint=f"hf auth login, or {_LOCAL}"
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise BadInputError(
            f"generator {repository} has no revision {revision}", hint="leave the revision out"
        ) from error
    except hub_errors.RepositoryNotFoundError as error:
        raise BadInputError(
            f"no generator {where} on the hub, and no folder of that name here", hint=_LOCAL
        ) from error
    # Before its parent class: the file is not in the local cache, and the hub could not be asked.
    except (hub_errors.LocalEntryNotFoundError, hub_errors.OfflineModeIsEnabled) as error:
        raise _unreachable(where, error) from error
    except hub_errors.EntryNotFoundError as error:
        raise BadInputError(
            f"generator {where} is no diffusers pipeline: it has no {INDEX_FILE}", hint=_LOCAL
        ) from error
    except hub_errors.HFValidationError as error:
        raise BadInputError(f"generator {where!r} is no hub id: {_first_line(error)}", hint=_LOCAL) from error
    # Network libraries raise errors of many kinds, and all of them mean that nothing came.
    except Exception as error:
        if "safetensors" in str(error):
            raise BadInputError(
                f"generator {where} has no safetensors weights, which alone are loaded",
                hint=(
                    "convert it where you trust it, save it with save_pretrained(DIR), and give "
                    "--generator DIR"
                ),
            ) from error
        raise _unreachable(where, error) from error


def _download(repository: str, *, revision: str | None) -> Path:
    from diffusers import DiffusionPipeline

    return Path(
        DiffusionPipeline.download(
            repository, revision=revision, use_safetensors=True, trust_remote_code=False
        )
    )


def _unreachable(where: str, error: Exception) -> BadInputError:
    return BadInputError(
        f"generator {where} is not on this machine, and the hub cannot be reached: {_first_line(error)}",
        hint=(
            "fetch it elsewhere (hf download ... --local-dir DIR) and give the folder: --generator DIR; "
            "or --generator builtin"
        ),
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
