"""`exlora.compat`: scripts and libraries that say `import exllamav2` get exlora."""

import subprocess
import sys
import textwrap

import pytest

EXLORA_ONLY = """
    import sys
    import exlora.compat
    exlora.compat.install()
"""


def run(script, *arguments, check=True):
    """Runs a script in a process of its own."""
    code = textwrap.dedent(EXLORA_ONLY) + textwrap.dedent(script)
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert not check or done.returncode == 0, done.stderr
    return done


def test_every_module_is_exloras_and_is_imported_once():
    run("""
        import exllamav2, exlora, exlora.generator
        import exllamav2.generator.filters.base
        import exllamav2.tokenizer.tokenizer as tokenizer
        from exllamav2 import model_init
        from exllamav2.generator.base import ExLlamaV2Filter
        from exllamav2.version import __version__

        assert exllamav2.generator is exlora.generator is sys.modules["exllamav2.generator"]
        assert exllamav2.ExLlamaV2 is exlora.ExLlamaV2
        assert tokenizer.ExLlamaV2Tokenizer is exlora.ExLlamaV2Tokenizer
        assert exllamav2.generator.filters.base.ExLlamaV2Filter is ExLlamaV2Filter
        assert exllamav2.util.Timer is exlora.Timer
        assert __version__ == exllamav2.__version__
        for name in ("generator", "generator.filters.base", "model_init", "tokenizer"):
            assert sys.modules[f"exlora.{name}"].__spec__.name == f"exlora.{name}"
            assert sys.modules[f"exllamav2.{name}"] is sys.modules[f"exlora.{name}"]
    """)


def test_the_package_says_which_file_it_is():
    done = run("""
        import importlib.util
        import exllamav2, exllamav2.version
        assert exllamav2.__file__ == exllamav2.version.__file__ == exlora.compat.__file__
        assert importlib.util.find_spec("exllamav2").origin == exllamav2.__file__
        print(exllamav2.__file__, exllamav2)
    """)
    assert done.stdout.count("compat/__init__.py") == 2


def test_a_star_import_brings_exllamav2s_names_and_no_others():
    run("""
        from exllamav2 import *
        from exllamav2.generator import *
        assert {"ExLlamaV2", "ExLlamaV2Cache_Q4", "SeqTensor", "Timer", "ExLlamaV2DynamicJob"} <= set(globals())
        assert not {"Engine", "Request", "Completion", "Tokenizer"} & set(globals())
    """)


def test_the_version_is_new_enough_wherever_it_is_looked_up():
    run("""
        import importlib.metadata, importlib.util
        assert importlib.util.find_spec("exllamav2") is not None
        version = importlib.metadata.version("exllamav2")
        assert tuple(int(part) for part in version.split("+")[0].split(".")) >= (0, 3, 1)
        assert "exllamav2" in {found.metadata["Name"] for found in importlib.metadata.distributions()}
        assert importlib.metadata.version("numpy")
        import exllamav2
        assert exllamav2.__version__ == version
    """)


@pytest.mark.parametrize("name", ["exllamav2.attn", "exllamav2.engine", "exllamav2.generator.nothing", "exllamav2._x"])
def test_a_module_that_exlora_lacks_is_not_found(name):
    done = run(f"import {name}", check=False)
    assert f"ModuleNotFoundError: No module named '{name}'" in done.stderr
    assert "exlora" in done.stderr.splitlines()[-1]


def test_the_real_exllamav2_is_not_replaced_once_it_is_imported(tmp_path):
    (tmp_path / "exllamav2.py").write_text("REAL = True\n")
    done = run(
        f"""
        exlora.compat.uninstall()
        sys.path.insert(0, {str(tmp_path)!r})
        import exllamav2
        assert exllamav2.REAL
        try:
            exlora.compat.install()
        except ImportError as error:
            print(error)
        del sys.modules["exllamav2"]
        exlora.compat.install()
        import exllamav2
        assert not hasattr(exllamav2, "REAL"), "an installed one gives way"
        """
    )
    assert str(tmp_path / "exllamav2.py") in done.stdout


def test_uninstalling_ends_it():
    run("""
        import exllamav2.generator
        exlora.compat.install()
        exlora.compat.uninstall()
        exlora.compat.uninstall()
        assert not [name for name in sys.modules if name.startswith("exllamav2")]
        import exlora.generator
        try:
            import exllamav2
        except ModuleNotFoundError:
            pass
        else:
            raise AssertionError("it is still there")
        exlora.compat.install()
        import exllamav2.generator
    """)


def test_arrays_are_tensors_where_torch_is_installed(fixtures):
    pytest.importorskip("torch")
    run(
        """
        from exllamav2 import ExLlamaV2Config, ExLlamaV2Tokenizer
        tokenizer = ExLlamaV2Tokenizer(ExLlamaV2Config(sys.argv[1]))
        assert tokenizer.encode("A cat").size(-1) > 0
        """,
        str(fixtures / "quill-4m"),
    )


def as_command(*arguments, **options):
    command = [sys.executable, "-W", "error", "-m", "exlora.compat", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **options)


@pytest.fixture
def script(tmp_path):
    """A script with a module beside it."""
    (tmp_path / "beside.py").write_text("WORD = 'beside'\n")
    (tmp_path / "script.py").write_text(
        textwrap.dedent("""
            import sys
            import exllamav2
            from beside import WORD
            if __name__ == "__main__":
                print(WORD, sys.argv, exllamav2.ExLlamaV2.__module__)
                sys.exit(3)
        """)
    )
    return tmp_path / "script.py"


def test_the_command_runs_a_script_with_its_arguments(script):
    done = as_command(str(script), "-m", "folder", "--help")
    assert done.returncode == 3, done.stderr
    assert done.stdout.strip() == f"beside {[str(script), '-m', 'folder', '--help']} exlora.model"


def test_the_command_runs_a_module(script):
    done = as_command("-m", "script", "x", cwd=script.parent)
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith("beside")
    assert done.stdout.strip().endswith("'x'] exlora.model")


def test_the_command_says_how_it_is_used():
    assert (as_command().returncode, as_command("--help").returncode) == (2, 0)
    assert "script.py" in as_command().stderr
    assert "script.py" in as_command("--help").stdout
    assert "No such file" in as_command("no_such_script.py").stderr
