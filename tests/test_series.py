# SPDX-License-Identifier: GPL-2.0-only
"""Tests of what is done with the series: the mails, and the kernels that it applies to."""

import email
import os
import subprocess
import tempfile
import unittest
from email.policy import default
from pathlib import Path
from unittest import mock

from lab import bases, mails, ranges, trees
from lab.util import LabError

PATCH = """--- a/file
+++ b/file
@@ -4,3 +4,4 @@
 four
 five
 six
+more
"""


class Scratch(unittest.TestCase):
    """With a directory for each test."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)


class Mails(Scratch):
    """The mails of the series."""

    def as_user(self, **settings):
        """Run as a user with nothing but SETTINGS in the git configuration."""
        config = self.folder / "gitconfig"
        config.write_text("[user]\n" + "".join(f"{key} = {value}\n"
                                               for key, value in settings.items()),
                          encoding="utf-8")
        changed = mock.patch.dict(os.environ, {"GIT_CONFIG_GLOBAL": str(config),
                                               "GIT_CONFIG_NOSYSTEM": "1",
                                               "GIT_CEILING_DIRECTORIES": str(self.folder)})
        changed.start()
        self.addCleanup(changed.stop)
        there = os.getcwd()
        os.chdir(self.folder)           # out of the repository, which may have a user
        self.addCleanup(os.chdir, there)

    def test_mails(self):
        """each mail is the submitter's, signed off, addressed, and the same change as its patch"""
        self.as_user(name="Jane Doe", email="jane@example.org")
        base = next(name for name in bases.names() if (trees.TREES / name).exists())
        to = self.folder / "mails"
        mails.write(base, to)
        cover, *sent = [email.message_from_bytes(path.read_bytes(), policy=default)
                        for path in sorted(to.iterdir())]
        patches = trees.series(base)
        self.assertEqual(len(sent), len(patches))
        for mail, patch in zip(sent, patches):
            self.assertEqual(mail["From"], "Jane Doe <jane@example.org>")
            self.assertIn("\nSigned-off-by: Jane Doe <jane@example.org>\n---\n",
                          mail.get_content())
            self.assertIn("@", mail["To"])
            self.assertIn("linux-kernel@vger.kernel.org", f"{mail['To']} {mail['Cc']}")
            text = patch.read_text(encoding="utf-8")
            self.assertIn(text[text.index("\ndiff --git"):].split("\n@@")[1],
                          mail.get_content())
        text = cover.get_content()
        self.assertIn(f"00/{len(sent)}", cover["Subject"])
        self.assertNotIn("***", cover["Subject"] + text)
        self.assertIn("base-commit: " + trees.git(trees.TREES / base, "rev-parse",
                                                  "base^{commit}").strip(), text)
        self.assertIn("Will Deacon", cover["To"])

    def test_no_submitter(self):
        """without a name in the git configuration there is one line, and no mail"""
        self.as_user(email="jane@example.org")
        with self.assertRaisesRegex(LabError, "user.name"):
            mails.write(bases.LEAD, self.folder / "mails")
        self.assertFalse((self.folder / "mails").exists())

    def test_directory_in_the_way(self):
        """mails do not go to a directory that exists"""
        with self.assertRaisesRegex(LabError, "exists"):
            mails.write(bases.LEAD, self.folder)


class Ranges(Scratch):
    """The kernels that the series applies to."""

    def verdict(self, text):
        """The verdict over a kernel whose file has TEXT."""
        (self.folder / "file").write_text(text, encoding="utf-8")
        patch = self.folder / "0001-x.patch"
        patch.write_text(PATCH, encoding="utf-8")
        return ranges.try_series(self.folder, [patch])[0]

    def test_verdicts(self):
        """cleanly, with offsets, with fuzz and not are told apart"""
        good = "one\ntwo\nthree\nfour\nfive\nsix\n"
        for text, verdict in ((good, 0), (f"zero\n{good}", 1),
                              (good.replace("four", "for"), 2), ("one\n", 3)):
            self.assertEqual(self.verdict(text), ranges.VERDICTS[verdict], text)

    def test_releases(self):
        """of each upstream version the newest revision is taken, the oldest version first"""
        with mock.patch.object(ranges.packages, "versions", lambda *_: [
                "7.3.4-2", "7.3.4-1~bpo13+1", "7.3.2-1", "7.3~rc7-1~exp1"]):
            self.assertEqual(list(ranges.releases("x").values()),
                             ["7.3~rc7-1~exp1", "7.3.2-1", "7.3.4-2"])

    def test_unpack(self):
        """of a kernel only the files that the series touches are unpacked"""
        source = self.folder / "linux-source-7.3"
        (source / "mm").mkdir(parents=True)
        for name in ("file", "mm/other"):
            (source / name).write_text(name, encoding="utf-8")
        series = [self.folder / "0001-x.patch"]
        series[0].write_text(PATCH, encoding="utf-8")
        to = self.folder / "to"
        to.mkdir()

        def extract(_, members, folder):
            tar = Path(folder, members[0])
            tar.parent.mkdir(parents=True)
            subprocess.run(["tar", "-c", "-J", "-f", tar, "-C", self.folder, source.name],
                           check=True)

        with mock.patch.multiple(ranges.packages, extract=extract,
                                 fetch_version=lambda *_: mock.Mock()):
            ranges.unpack(source.name, "7.3.4-1", series, to)
            self.assertEqual([path.name for path in to.iterdir()], ["file"])
            (source / "file").unlink()
            (to / "file").unlink()
            with self.assertRaisesRegex(LabError, "none of the files"):
                ranges.unpack(source.name, "7.3.4-1", series, to)


if __name__ == "__main__":
    unittest.main(verbosity=2)
