"""The self-check: what it finds, in which process it runs, what is kept, and who steps then."""

from __future__ import annotations

import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from soap_fast import SOAP, self_check, versions
from soap_fast.__main__ import main
from soap_fast.backends import requirements, unfit
from soap_fast.self_check import checking, choice, isolated, problem
from soap_fast.self_check.verdict import Kept, Verdict, cache_folder

GOOD, BAD = Verdict(1e-5, 5e-4), Verdict(0.1, 5e-4)
GPU = torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """As much of a GPU as the check looks at, and a cache folder of its own."""
    properties = SimpleNamespace(name="Some GPU", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: properties.name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(checking.SETTING, raising=False)
    monkeypatch.setattr(checking, "_known", {})
    return properties


class TestAProcessOfItsOwn:
    def run(self, monkeypatch, code: str, limit: float = 60.0):
        monkeypatch.setattr(isolated, "CODE", code)
        return isolated.check_isolated((), limit)

    def test_the_command_prints_its_error(self, capsys):
        assert main(["--check", "eager"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["error"] <= found["tolerance"] == problem.TOLERANCE

    def test_it_finds_the_modules_of_this_process(self):
        verdict = isolated.check_isolated(("--check", "eager", "--device", "cpu"))
        assert verdict.ok, verdict

    def test_a_crash_is_a_verdict(self, monkeypatch):
        verdict = self.run(monkeypatch, "import os; os.kill(os.getpid(), 11)")
        assert not verdict.ok
        assert signal.Signals.SIGSEGV.name in verdict.problem

    def test_a_fault_holds_and_what_may_pass_does_not(self, monkeypatch):
        faults = ("import os; os.kill(os.getpid(), 11)", "raise RuntimeError('misaligned address')")
        for code in faults:
            assert self.run(monkeypatch, code).holds
        for code in ("import os; os.kill(os.getpid(), 9)", "raise OSError('No space left')"):
            assert not self.run(monkeypatch, code).holds
        assert not self.run(monkeypatch, "import time; time.sleep(600)", limit=0.5).holds
        assert GOOD.holds
        assert BAD.holds

    def test_an_exception_is_a_verdict(self, monkeypatch):
        verdict = self.run(monkeypatch, "raise RuntimeError('an illegal memory access')")
        assert verdict.problem.endswith("RuntimeError: an illegal memory access")

    def test_what_does_not_return_is_ended(self, monkeypatch):
        start = time.monotonic()
        verdict = self.run(monkeypatch, "import time; time.sleep(600)", limit=1.0)
        assert verdict.problem == "took longer than 1 s"
        assert time.monotonic() - start < 60

    @pytest.mark.parametrize(
        "words", ["CUDA-capable device(s) is/are busy or unavailable", "CUDA out of memory. Tried"]
    )
    def test_a_device_that_admits_no_second_process_gives_none(self, monkeypatch, words):
        assert self.run(monkeypatch, f"raise RuntimeError({words!r})") is None


class TestWhatIsKept:
    def test_it_is_found_again_for_the_same_facts_alone(self, gpu):
        Kept({"device": "a"}).write(GOOD)
        assert Kept({"device": "a"}).read() == GOOD
        assert Kept({"device": "b"}).read() is None

    def test_a_damaged_file_is_none(self, gpu):
        kept = Kept({"device": "a"})
        kept.write(GOOD)
        kept.path.write_text("{")
        assert kept.read() is None

    def test_a_folder_that_cannot_be_written_is_no_error(self, gpu, monkeypatch, tmp_path):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        kept = Kept({"device": "a"})
        with kept.locked(1.0):
            kept.write(GOOD)
        assert kept.read() is None

    def test_it_lies_in_the_users_cache_folder(self, gpu, tmp_path):
        assert cache_folder().is_relative_to(tmp_path)

    def test_facts_change_with_the_device_the_versions_and_the_code(self, gpu, monkeypatch):
        def facts():
            return checking.facts("triton", 0, "tf32x3")

        before = facts()
        assert before == facts()
        monkeypatch.setattr(gpu, "name", "Another GPU")
        assert facts() != before
        monkeypatch.setattr(gpu, "name", before["device"])
        monkeypatch.setattr(torch, "__version__", "2.99")
        assert facts() != before
        monkeypatch.undo()
        assert versions.digest() == before["code"]


class TestTheCheck:
    """With a GPU that is not there: how often it runs, and what it says."""

    @pytest.fixture
    def runs(self, monkeypatch):
        made: list[tuple[str, ...]] = []

        def isolated_check(arguments):
            made.append(arguments)
            return GOOD

        monkeypatch.setattr(checking, "check_isolated", isolated_check)
        return made

    def ask(self, name="triton", precision="tf32x3"):
        return checking.check(name, GPU, SOAP, precision)

    def test_it_runs_once_says_so_and_is_kept(self, gpu, runs, monkeypatch, capsys):
        assert self.ask() == self.ask() == GOOD
        said = capsys.readouterr().err
        assert "checking backend 'triton' on Some GPU" in said
        monkeypatch.setattr(checking, "_known", {})  # another process
        start = time.monotonic()
        assert self.ask() == GOOD
        assert time.monotonic() - start < 0.1
        assert capsys.readouterr().err == ""
        assert len(runs) == 1
        assert runs[0][-4:] == ("--device", "cuda:0", "--input-precision", "tf32x3")

    def test_what_may_pass_is_not_kept(self, gpu, monkeypatch):
        passing = Verdict(None, 5e-4, "took longer than 120 s")
        found = iter([passing, GOOD])
        monkeypatch.setattr(checking, "check_isolated", lambda arguments: next(found))
        assert self.ask() == passing
        monkeypatch.setattr(checking, "_known", {})
        assert self.ask() == GOOD

    def test_a_second_process_waits_and_takes_the_verdict_of_the_first(self, gpu, monkeypatch):
        started, made = threading.Event(), []

        def slow(arguments):
            made.append(arguments)
            started.set()
            time.sleep(0.5)
            return GOOD

        monkeypatch.setattr(checking, "check_isolated", slow)

        def a_process():
            return checking._kept_or_new("triton", 0, SOAP, "tf32x3")

        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(a_process)
            started.wait()
            second = threads.submit(a_process)
            assert first.result() == second.result() == GOOD
        assert len(made) == 1

    def test_each_precision_has_a_verdict_and_tf32_that_of_tf32x3(self, gpu, runs):
        for precision in ("tf32x3", "ieee", "tf32"):
            self.ask(precision=precision)
        assert [arguments[-1] for arguments in runs] == ["tf32x3", "ieee"]

    def test_always_checks_once_a_process(self, gpu, runs, monkeypatch):
        self.ask()
        monkeypatch.setenv(checking.SETTING, "always")
        for _ in range(2):
            monkeypatch.setattr(checking, "_known", {})
            self.ask()
            self.ask()
        assert len(runs) == 3

    def test_where_there_can_be_no_second_process_it_runs_here(self, gpu, monkeypatch):
        monkeypatch.setattr(checking, "check_isolated", lambda arguments: None)
        seen = []

        def largest_error(make, name, device, **options):
            seen.append((name, device, options))
            assert checking.is_off()  # its own optimizers ask for no check
            return 1e-5

        monkeypatch.setattr(checking, "largest_error", largest_error)
        assert self.ask().ok
        assert seen == [("triton", "cuda:0", {"input_precision": "tf32x3"})]
        assert not checking.is_off()

    def test_an_error_there_is_a_verdict(self, gpu, monkeypatch):
        def failing(*_, **__):
            raise torch.OutOfMemoryError("CUDA out of memory.\nmore lines")

        monkeypatch.setattr(checking, "check_isolated", lambda arguments: None)
        monkeypatch.setattr(checking, "largest_error", failing)
        assert self.ask().problem == "OutOfMemoryError: CUDA out of memory."

    def test_a_setting_that_is_none(self, gpu, monkeypatch):
        monkeypatch.setenv(checking.SETTING, "never")
        with pytest.raises(ValueError, match="SOAP_FAST_SELF_CHECK=never is not one of"):
            self.ask()


class TestTheChoice:
    @pytest.fixture
    def verdicts(self, gpu, monkeypatch):
        found = {"triton": GOOD, "native": GOOD}
        monkeypatch.setattr(choice, "check", lambda name, device, make, precision: found[name])
        monkeypatch.setattr(choice, "unfit", lambda name, device: None)
        return found

    def test_kernels_that_are_right_step(self, verdicts, recwarn):
        assert self_check.Choice(SOAP, "tf32x3")(GPU) == "triton"
        assert not recwarn.list

    def test_those_that_are_wrong_do_not_and_a_warning_names_all(self, verdicts):
        verdicts["triton"] = BAD
        chosen = self_check.Choice(SOAP, "tf32x3")
        with pytest.warns(RuntimeWarning) as caught:
            assert [chosen(GPU), chosen(GPU)] == ["native", "native"]
        (said,) = [str(w.message) for w in caught]
        for words in ("'triton'", "Some GPU", f"torch {torch.__version__}", "error 1.0e-01"):
            assert words in said

    def test_the_last_resort_is_plain_torch(self, verdicts):
        verdicts.update(triton=BAD, native=Verdict(None, 5e-4, "took longer than 120 s"))
        with pytest.warns(RuntimeWarning) as caught:
            assert self_check.Choice(SOAP, "tf32x3")(GPU) == "eager"
        assert len(caught) == 2

    def test_off_asks_nobody(self, verdicts, monkeypatch):
        verdicts.clear()
        monkeypatch.setenv(checking.SETTING, "off")
        assert self_check.Choice(SOAP, "tf32x3")(GPU) == "triton"

    def test_asked_for_by_name_it_warns_and_goes_on(self, verdicts):
        verdicts["triton"] = BAD
        with pytest.warns(RuntimeWarning, match="runs there all the same"):
            self_check.Choice(SOAP, "tf32x3").prepare([GPU, torch.device("cpu")], "triton")

    def test_a_cpu_is_not_checked(self, gpu, monkeypatch):
        monkeypatch.setattr(choice, "check", None)
        assert self_check.Choice(SOAP, "tf32x3")(torch.device("cpu")) in ("native", "eager")
        assert self_check.Choice(SOAP, "tf32x3")(torch.device("mps")) == "eager"


class TestWhatTritonNeeds:
    @pytest.fixture
    def compiled(self, gpu, monkeypatch):
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        return gpu

    def test_nothing_more_than_there_is(self, compiled, monkeypatch):
        monkeypatch.setattr(requirements, "missing_to_build_with", lambda: None)
        assert requirements.missing_for_triton() is None

    def test_a_capability(self, compiled, monkeypatch):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        assert "compute capability 7.5" in requirements.missing_for_triton()

    def test_a_gpu_of_nvidia(self, compiled, monkeypatch):
        assert "not for mps" in requirements.unfit_for_triton(torch.device("mps"))
        monkeypatch.setattr(torch.version, "hip", "7.0")
        assert "not for HIP" in requirements.missing_for_triton()
        assert "alone" in unfit("native", GPU)

    def test_a_process_that_can_use_cuda(self, compiled, monkeypatch):
        def refuse(device):
            raise RuntimeError("Cannot re-initialize CUDA in forked subprocess.\nUse spawn.")

        monkeypatch.setattr(torch.cuda, "get_device_capability", refuse)
        assert requirements.missing_for_triton().endswith("CUDA in forked subprocess.")

    def test_a_compiler(self, monkeypatch):
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setattr("shutil.which", lambda name: None)
        assert "no C compiler (gcc, clang)" in requirements.missing_to_build_with()
        monkeypatch.undo()
        monkeypatch.setenv("CC", "gcc -O2")  # which Triton takes for the name of a program
        assert "no C compiler ('gcc -O2')" in requirements.missing_to_build_with()

    def test_the_headers_of_python(self, compiled, monkeypatch, tmp_path):
        monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
        monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
        assert "no Python.h" in requirements.missing_for_triton()
