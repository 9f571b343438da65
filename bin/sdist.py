"""What the source distribution holds beside the library: all that its own tests need. setup.cfg names this class."""

from setuptools.command.sdist import sdist

__all__ = ["WholeTree"]

_FOLDERS = ("webapp", "tests", "bin", ".ci")
_FILES = (
    *("README.zh-CN.md", "CHANGELOG.md", "deepseek_client/README.md"),
    *("requirements.txt", "ruff.toml", ".env.example", ".gitignore"),
)


class WholeTree(sdist):
    """The command `sdist`: the whole tree, not the packages only. setuptools alone would want a MANIFEST.in."""

    def make_distribution(self) -> None:
        """Adds the files, then makes the archive as ever."""
        for folder in _FOLDERS:
            self.filelist.graft(folder)
        for file in _FILES:
            self.filelist.include(file)
        self.filelist.global_exclude("*.py[cod]")
        self.filelist.sort()
        self.filelist.remove_duplicates()
        super().make_distribution()
